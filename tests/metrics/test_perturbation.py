import itertools
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references.curves import (
    BOTH,
    DELETION,
    INSERTION,
    LEAST,
    MEAN,
    REFERENCES,
    SmoothScore,
    mean_image_by_hand,
    some_images,
    some_map,
)
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.metrics import perturbation
from attncompare.metrics.perturbation import (
    baseline_images,
    perturbation_curves,
)
from attncompare.metrics.protocols import Protocol
from attncompare.metrics.user_protocols import get_protocol


def times_shown(score: SmoothScore, image: Tensor, which: int) -> int:
    """Up to rounding: some processors blur an image alone and in a batch by other sums."""
    close = [float((seen - image).abs().max()) < 1e-6 for seen in score.shown]
    return sum(w == which and same for same, w in zip(close, score.which, strict=True))


@pytest.mark.parametrize("name", ["chefer", "srg"])
def test_a_protocol_without_insertion_says_so(name):
    with pytest.raises(SpecError, match=f"protocol {name} has no insertion"):
        perturbation_curves(
            SmoothScore(1, (28, 28)),
            some_images(1, (28, 28)),
            {"m": some_map(1, (28, 28))},
            get_protocol(name),
            BOTH,
            mean=MEAN,
        )


def test_maps_of_one_order_are_scored_once():
    size, images = (28, 28), some_images(2, (28, 28))
    base = some_map(2, size)
    maps = {"a": base, "same": 4 * base, "other": some_map(2, size, 5), "negative": -base}
    score = SmoothScore(2, size)
    curves = perturbation_curves(score, images, maps, get_protocol("rise"), (DELETION, INSERTION, LEAST), mean=MEAN)
    steps = get_protocol("rise").count(size) - 1
    # deletion and least first: of a, -a, other, -other; insertion: of a, other, -a
    assert len(score.shown) == 2 * (3 + (4 + 3) * steps)
    assert len({(w, image.numpy().tobytes()) for image, w in zip(score.shown, score.which, strict=True)}) == len(
        score.shown
    )
    for curve in (DELETION, INSERTION, LEAST):
        assert torch.equal(curves["a"][curve], curves["same"][curve])
    assert torch.equal(curves["a"][LEAST], curves["negative"][DELETION])
    assert torch.equal(curves["a"][DELETION], curves["negative"][LEAST])
    assert not any(rows.isnan().any() for found in curves.values() for rows in found.values())


def test_memory_does_not_depend_on_the_number_of_maps_or_steps(monkeypatch):
    size, images = (28, 28), some_images(3, (28, 28))
    alive, most = [0], [0]
    plain = baseline_images

    def counted(clean, kind, mean):
        drawn = plain(clean, kind, mean)
        assert len(clean) == 1  # of one image at a time
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(drawn, lambda: alive.__setitem__(0, alive[0] - 1))
        return drawn

    monkeypatch.setattr(perturbation, "baseline_images", counted)
    buffers = set()

    def score(batch, which):
        buffers.add(batch.data_ptr())
        return batch.mean(dim=(1, 2, 3))

    maps = {str(seed): some_map(3, size, seed) for seed in range(4)}
    perturbation_curves(score, images, maps, get_protocol("rise"), BOTH, mean=MEAN, batch_size=2)
    assert len(buffers) == 1
    assert most[0] <= 4  # two baselines of an image, and those of the image before while a batch still holds them


def test_a_small_map_is_enlarged_bilinearly_before_pixels_are_ranked():
    size, maps = (28, 28), some_map(1, (7, 7))
    images, score = some_images(1, size), SmoothScore(1, size)
    large = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    curves = perturbation_curves(score, images, {"small": maps, "large": large}, get_protocol("rise"), BOTH, mean=MEAN)
    for curve in BOTH:
        assert torch.equal(curves["small"][curve], curves["large"][curve])


@pytest.mark.parametrize("name", REFERENCES)
def test_the_same_seed_gives_the_same_curve_and_another_seed_another(name):
    size = (28, 28)
    images, score, tied = some_images(1, size), SmoothScore(1, size), (some_map(1, size) > 0).float()
    first, again, other = (
        perturbation_curves(score, images, {"m": tied}, get_protocol(name), BOTH, mean=MEAN, seed=seed)["m"]
        for seed in (3, 3, 4)
    )
    for curve in BOTH:
        assert torch.equal(first[curve], again[curve])
        assert not torch.equal(first[curve], other[curve])


@pytest.mark.parametrize("name", REFERENCES)
def test_all_constant_maps_have_one_and_the_same_curve(name):
    size = (28, 28)
    images, score = some_images(1, size), SmoothScore(1, size)
    maps = {str(value): torch.full((1, *size), value) for value in (-1.0, 0.0, 2.5)}
    maps["small"] = torch.ones(1, 7, 7)
    curves = perturbation_curves(score, images, maps, get_protocol(name), BOTH, mean=MEAN)
    for curve in BOTH:
        assert all(torch.equal(found[curve], curves["0.0"][curve]) for found in curves.values())
        assert torch.isfinite(curves["0.0"][curve]).all()
        assert len(curves["0.0"][curve].unique()) > 2


def test_batch_size_changes_neither_values_nor_the_limit_of_a_batch():
    size = (28, 28)
    images, maps = some_images(3, size), {"a": some_map(3, size, 1), "b": some_map(3, (7, 7), 2)}
    expected = None
    for batch_size in (1, 3, 8, 1000):
        score = SmoothScore(3, size)
        found = perturbation_curves(score, images, maps, get_protocol("rise"), BOTH, mean=MEAN, batch_size=batch_size)
        assert max(score.batches) <= batch_size
        expected = expected or found
        for name, curve in itertools.product(maps, BOTH):
            assert torch.equal(found[name][curve], expected[name][curve])


def test_maps_and_directions_together_equal_each_alone():
    size = (24, 40)
    images, maps = some_images(2, size), {"a": some_map(2, size, 1), "b": some_map(2, size, 2)}
    together = perturbation_curves(SmoothScore(2, size), images, maps, get_protocol("grid14"), BOTH, mean=MEAN)
    for name, curve in itertools.product(maps, BOTH):
        alone = perturbation_curves(
            SmoothScore(2, size), images, {name: maps[name]}, get_protocol("grid14"), [curve], mean=MEAN
        )
        assert list(alone[name]) == [curve]
        assert torch.equal(alone[name][curve], together[name][curve])


@pytest.mark.parametrize(("name", "ends"), [("rise", ("mean", "blur")), ("grid14", ("blur",))])
def test_each_end_point_is_scored_once_per_image_for_all_maps(name, ends):
    size, count = (28, 28), 2
    images, score = some_images(count, size), SmoothScore(count, size)
    maps = {str(seed): some_map(count, size, seed) for seed in range(3)}
    protocol = get_protocol(name)
    curves = perturbation_curves(score, images, maps, protocol, BOTH, mean=MEAN)
    for which in range(count):
        assert times_shown(score, images[which], which) == 1
        for kind in ends:
            assert times_shown(score, baseline_images(images, kind, MEAN)[which], which) == 1
    between = len(maps) * count * len(BOTH) * (protocol.count(size) - 1)
    assert len(score.shown) == between + count * (1 + len(ends))
    assert torch.equal(curves["0"][DELETION][:, 0], curves["2"][INSERTION][:, -1])


def test_an_image_of_one_step_has_only_its_end_points():
    size = (8, 8)
    images, score = some_images(1, size), SmoothScore(1, size)
    curve = perturbation_curves(score, images, {"m": some_map(1, size)}, get_protocol("rise"), BOTH, mean=MEAN)["m"]
    expected = [score.of(images[0].double().numpy(), 0), score.of(mean_image_by_hand(images[0].numpy()), 0)]
    np.testing.assert_allclose(curve[DELETION][0].numpy(), expected, atol=1e-6)


def test_images_and_maps_are_left_as_they_were():
    size = (28, 28)
    images, maps = some_images(1, size), some_map(1, size)
    before = images.clone(), maps.clone()
    perturbation_curves(SmoothScore(1, size), images, {"m": maps}, get_protocol("rise"), BOTH, mean=MEAN)
    assert torch.equal(images, before[0]) and torch.equal(maps, before[1])


def test_steps_that_divide_others_give_points_of_the_same_curve():
    size = (28, 32)
    images, maps, score = some_images(1, size), {"m": some_map(1, size)}, SmoothScore(1, size)
    one, other = (
        perturbation_curves(score, images, maps, Protocol("n", None, steps, "mean", "blur"), BOTH, mean=MEAN)["m"]
        for steps in (112, 28)
    )
    for curve in BOTH:
        assert torch.equal(one[curve][:, ::4], other[curve])
