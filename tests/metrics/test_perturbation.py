import itertools
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.metrics import perturbation
from attncompare.metrics._base import Evidence
from attncompare.metrics.deletion import deletion
from attncompare.metrics.deletion_normalised import deletion_normalised
from attncompare.metrics.insertion_normalised import insertion_normalised
from attncompare.metrics.lerf import lerf
from attncompare.metrics.morf import morf
from attncompare.metrics.perturbation import (
    area_under_curve,
    baseline_images,
    blur_kernel,
    change_step,
    perturbation_curves,
    rank_units,
    rescaled_curve,
)
from attncompare.metrics.protocols import PROTOCOLS, Protocol, get_protocol
from attncompare.metrics.srg import srg

DELETION, INSERTION, LEAST = Evidence.DELETION_CURVE, Evidence.INSERTION_CURVE, Evidence.LEAST_FIRST_CURVE
BOTH = (DELETION, INSERTION)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ((28, 28), (24, 40), (17, 29))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=seeded(seed))


def some_map(count: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn(count, *size, generator=seeded(seed))


def distinct_map(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randperm(size[0] * size[1], generator=seeded(seed)).reshape(1, *size).float()


class SmoothScore:
    """A probability that depends on every pixel and on which image the copy is of; it keeps what it was shown."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.weights = torch.randn(count, 3, *size, generator=seeded(9), dtype=torch.float64)
        self.shown: list[Tensor] = []
        self.which: list[int] = []
        self.batches: list[int] = []

    def of(self, image: np.ndarray, which: int) -> float:
        drive = float((image * self.weights[which].numpy()).sum()) / math.sqrt(image.size)
        return 1 / (1 + math.exp(-3 * drive))

    def __call__(self, images: Tensor, which: Tensor) -> Tensor:
        self.shown += list(images.clone())
        self.which += which.tolist()
        self.batches.append(len(images))
        return torch.tensor([self.of(image.double().numpy(), int(w)) for image, w in zip(images, which, strict=True)])


class LinearScore:
    """The sum of weight x mean colour over all pixels: each pixel's part in the score is known exactly."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.double()

    def __call__(self, images: Tensor, which: Tensor) -> Tensor:
        return (images.double().mean(dim=1) * self.weights).sum(dim=(1, 2))


def delta_response_by_hand() -> np.ndarray:
    """A Gaussian of sigma 5, cut at 4 sigma, that runs over a one-pixel signal of length 11 mirrored at its edges."""
    reach = range(-20, 21)
    bell = {t: math.exp(-(t**2) / (2 * 5.0**2)) for t in reach}
    total = sum(bell.values())
    mirrored = [*range(11), *reversed(range(11))]
    line = [sum(bell[t] / total for t in reach if mirrored[(i + t) % 22] == 5) for i in range(11)]
    return np.outer(line, line)


def blurred_by_hand(image: np.ndarray) -> np.ndarray:
    """(3,H,W): normalise, pad with 5 zeros, sum each 11 x 11 window under the kernel, undo the normalisation."""
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    normal, kernel = (image - mean) / std, delta_response_by_hand()
    padded = np.pad(normal, ((0, 0), (5, 5), (5, 5)))
    found = np.zeros_like(normal)
    for channel, row, column in itertools.product(*map(range, image.shape)):
        found[channel, row, column] = (padded[channel, row : row + 11, column : column + 11] * kernel).sum()
    return found * std + mean


def mean_image_by_hand(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array(MEAN)[:, None, None], image.shape).copy()


def single_pixels(values: np.ndarray) -> list[tuple[float, list[tuple[int, int]]]]:
    return [(values[row, column], [(row, column)]) for row in range(len(values)) for column in range(len(values[0]))]


def cells_of_14(values: np.ndarray) -> list[tuple[float, list[tuple[int, int]]]]:
    height, width = values.shape
    units = []
    for i, j in itertools.product(range(14), range(14)):
        rows = range(i * height // 14, (i + 1) * height // 14)
        columns = range(j * width // 14, (j + 1) * width // 14)
        pixels = list(itertools.product(rows, columns))
        units.append((sum(values[pixel] for pixel in pixels) / len(pixels), pixels))
    return units


def curve_by_hand(score, start: np.ndarray, finish: np.ndarray, units, steps: int) -> list[float]:
    """The loop of the RISE paper: change the next most relevant units, show the image, note the score."""
    ranked = sorted(units, key=lambda unit: -unit[0])
    image, changed, curve = start.copy(), 0, [score(start)]
    for step in range(1, steps + 1):
        while changed < round(step * len(units) / steps):
            for row, column in ranked[changed][1]:
                for channel in range(3):
                    image[channel, row, column] = finish[channel, row, column]
            changed += 1
        curve.append(score(image))
    return curve


REFERENCES = {
    # deletion baseline, insertion start, units, number of steps for H x W
    "rise": (mean_image_by_hand, blurred_by_hand, single_pixels, lambda h, w: math.ceil(h * w / 224)),
    "rise-fast": (mean_image_by_hand, blurred_by_hand, single_pixels, lambda h, w: min(28, math.ceil(h * w / 224))),
    "grid14": (blurred_by_hand, blurred_by_hand, cells_of_14, lambda h, w: 28),
}


def black_by_hand(image: np.ndarray) -> np.ndarray:
    return np.zeros_like(image)


REMOVALS = {
    # what replaces removed units, units, number of steps, points that are scored
    "rise": (mean_image_by_hand, single_pixels, lambda h, w: math.ceil(h * w / 224), None),
    "rise-fast": (mean_image_by_hand, single_pixels, lambda h, w: min(28, math.ceil(h * w / 224)), None),
    "grid14": (blurred_by_hand, cells_of_14, lambda h, w: 28, None),
    "chefer": (black_by_hand, single_pixels, lambda h, w: 10, 10),
    "srg": (mean_image_by_hand, cells_of_14, lambda h, w: 28, None),
}


def test_every_protocol_has_a_slow_reference():
    assert set(REMOVALS) == set(PROTOCOLS)
    assert set(REFERENCES) == {name for name, protocol in PROTOCOLS.items() if protocol.insertion}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REMOVALS)
def test_most_and_least_relevant_first_are_those_of_the_loop(name, size):
    images, maps, score = some_images(2, size), some_map(2, size), SmoothScore(2, size)
    protocol = get_protocol(name)
    found = perturbation_curves(
        score, images, maps=dict(m=maps), protocol=protocol, curves=(DELETION, LEAST), mean=MEAN
    )["m"]
    removed, units_of, count, points = REMOVALS[name]
    for i, (curve, sign) in itertools.product(range(2), ((DELETION, 1), (LEAST, -1))):
        image, units = images[i].double().numpy(), units_of(sign * maps[i].double().numpy())
        expected = curve_by_hand(lambda x, i=i: score.of(x, i), image, removed(image), units, count(*size))[:points]
        assert np.ptp(expected) > 1e-3
        np.testing.assert_allclose(found[curve][i].numpy(), expected, rtol=0, atol=1e-6)
    x = [k / count(*size) for k in range(points or count(*size) + 1)]
    np.testing.assert_allclose(protocol.shares(size).numpy(), x, atol=1e-12)
    area = sum((a + b) / 2 * (x[1] - x[0]) for a, b in itertools.pairwise(found[DELETION][0].tolist()))
    assert morf(found[DELETION], protocol.shares(size))[0].item() == pytest.approx(area, abs=1e-6)
    assert deletion(found[DELETION], protocol.shares(size))[0].item() == pytest.approx(area, abs=1e-6)


def test_the_area_of_chefers_ten_points_is_not_divided_by_their_span():
    shares = get_protocol("chefer").shares((28, 28))
    always = torch.ones(1, 10)
    assert morf(always, shares).item() == lerf(always, shares).item() == pytest.approx(0.9)
    fading = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0]])  # trapezoids: three of 0.1 and half of one
    assert lerf(fading, shares).item() == pytest.approx(0.35)


def test_the_gain_is_the_area_between_the_curves():
    shares = get_protocol("srg").shares((28, 28))
    most, least = torch.linspace(1, 0, 29)[None] ** 3, torch.linspace(1, 0, 29)[None] ** (1 / 3)
    assert srg(most, least, shares).item() == pytest.approx(3 / 4 - 1 / 4, abs=5e-3)
    assert srg(least, least, shares).item() == 0


def test_a_curve_that_stops_early_cannot_be_rescaled():
    curve, shares = torch.linspace(1, 0, 10)[None], get_protocol("chefer").shares((28, 28))
    assert deletion_normalised(curve, shares).isnan().all()
    whole = torch.linspace(0.8, 0.2, 11)[None]
    assert deletion_normalised(whole, torch.linspace(0, 1, 11)).item() == pytest.approx(0.5)
    assert insertion_normalised(whole.flip(1), torch.linspace(0, 1, 11)).item() == pytest.approx(0.5)


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


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    values=arrays(np.float32, (6, 8), elements=st.integers(-3, 3)),
    steps=st.sampled_from((1, 2, 4, 6, 12, 24, 48)),
    start=st.sampled_from(("mean", "blur", "black")),
    finish=st.sampled_from(("mean", "blur", "black")),
)
def test_deletion_is_insertion_of_the_negative_read_backwards_with_ends_swapped_and_ties_reversed(
    values, steps, start, finish
):
    size, images, score = (6, 8), some_images(1, (6, 8)), SmoothScore(1, (6, 8))
    plain = torch.from_numpy(values)
    ranks = rank_units(plain.flatten(), seed=0).reshape(
        size
    )  # distinct values of the same order, so that -map reverses ties
    one = Protocol("one", None, steps, start, finish)
    two = Protocol("two", None, steps, finish, start)
    there = perturbation_curves(score, images, {"m": plain[None]}, one, [DELETION], mean=MEAN)["m"][DELETION]
    back = perturbation_curves(score, images, {"m": ranks[None].float()}, two, [INSERTION], mean=MEAN)["m"][INSERTION]
    assert torch.equal(there, back.flip(1))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(importance=arrays(np.float32, (4, 6), elements=st.integers(-9, 9)), order=st.permutations(range(24)))
def test_no_order_beats_that_of_importance_on_an_additive_model(importance, order):
    images = torch.ones(1, 3, 4, 6)
    maps = {"true": torch.from_numpy(importance)[None], "other": torch.tensor(order).reshape(1, 4, 6).float()}
    protocol = Protocol("pixel by pixel", None, 24, "black", "black")
    curves = perturbation_curves(
        LinearScore(maps["true"][0]), images, maps, protocol, (DELETION, INSERTION, LEAST), mean=MEAN
    )
    areas = {name: {c: float(area_under_curve(found[c])) for c in found} for name, found in curves.items()}
    assert areas["true"][DELETION] <= areas["other"][DELETION] + 1e-4
    assert areas["true"][INSERTION] >= areas["other"][INSERTION] - 1e-4
    assert areas["true"][LEAST] >= areas["other"][LEAST] - 1e-4


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REFERENCES)
def test_curves_are_those_of_the_loop_in_the_paper(name, size):
    images, maps, score = some_images(2, size), some_map(2, size), SmoothScore(2, size)
    found = perturbation_curves(score, images, {"m": maps}, get_protocol(name), BOTH, mean=MEAN, batch_size=5)["m"]
    removed, inserted_into, units_of, count = REFERENCES[name]
    for i in range(2):
        image, units = images[i].double().numpy(), units_of(maps[i].double().numpy())
        deletion = curve_by_hand(lambda x, i=i: score.of(x, i), image, removed(image), units, count(*size))
        insertion = curve_by_hand(lambda x, i=i: score.of(x, i), inserted_into(image), image, units, count(*size))
        assert np.ptp(deletion) > 1e-3 and np.ptp(insertion) > 1e-3
        np.testing.assert_allclose(found[DELETION][i].numpy(), deletion, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[INSERTION][i].numpy(), insertion, rtol=0, atol=1e-6)


def test_a_small_map_is_enlarged_bilinearly_before_pixels_are_ranked():
    size, maps = (28, 28), some_map(1, (7, 7))
    images, score = some_images(1, size), SmoothScore(1, size)
    large = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    curves = perturbation_curves(score, images, {"small": maps, "large": large}, get_protocol("rise"), BOTH, mean=MEAN)
    for curve in BOTH:
        assert torch.equal(curves["small"][curve], curves["large"][curve])


def test_blur_kernel_is_the_response_to_a_delta_in_a_mirrored_box():
    kernel = blur_kernel().double().numpy()
    np.testing.assert_allclose(kernel, delta_response_by_hand(), atol=1e-7)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert round(kernel.max() / kernel.min(), 2) == 1.14


@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_blur_is_a_convolution_in_normalised_space_with_zero_padding(size):
    image = some_images(1, size, seed=3)
    blurred = baseline_images(image, "blur", MEAN)
    np.testing.assert_allclose(blurred[0].numpy(), blurred_by_hand(image[0].double().numpy()), atol=1e-6)


def test_blurring_the_mean_colour_changes_nothing_even_at_the_border():
    flat = torch.tensor(MEAN).reshape(1, 3, 1, 1).expand(1, 3, 16, 12)
    torch.testing.assert_close(baseline_images(flat, "blur", MEAN), flat.contiguous(), rtol=0, atol=1e-6)


def test_mean_and_black_baselines_are_flat():
    images = some_images(2, (5, 4))
    mean = baseline_images(images, "mean", MEAN)
    assert mean.shape == images.shape
    assert torch.equal(mean, torch.tensor(MEAN).reshape(1, 3, 1, 1).expand(2, 3, 5, 4))
    assert torch.equal(baseline_images(images, "black", MEAN), torch.zeros(2, 3, 5, 4))


@pytest.mark.parametrize(
    ("name", "size", "units", "steps"),
    [
        ("rise", (90, 101), 9090, 41),
        ("rise-fast", (90, 101), 9090, 28),
        ("rise", (17, 29), 493, 3),
        ("grid14", (28, 42), 196, 28),
    ],
)
def test_after_step_k_the_rounded_share_of_the_units_has_changed(name, size, units, steps):
    step = change_step(some_map(1, size)[0], size, get_protocol(name))
    pixels_a_unit = size[0] * size[1] // units
    changed = [int((step <= k).sum()) for k in range(steps + 1)]
    assert changed == [round(k * units / steps) * pixels_a_unit for k in range(steps + 1)]


@pytest.mark.parametrize(("units", "first"), [(5, 2), (7, 4)])
def test_half_a_unit_is_rounded_to_even(units, first):
    halves = Protocol("halves", None, 2, "mean", "mean", False)
    step = change_step(torch.arange(float(units))[None], (1, units), halves)
    assert int((step == 1).sum()) == first


def test_the_largest_values_change_first():
    values = torch.tensor([[0.5, -3.0, 2.0], [7.0, 0.0, 1.0]])
    step = change_step(values, (2, 3), Protocol("single", None, 6, "mean", "mean", False))
    assert step.tolist() == [[4, 6, 2], [1, 5, 3]]


def test_cells_rank_by_their_mean_and_change_as_a_whole():
    step = change_step(some_map(1, (30, 45))[0], (30, 45), get_protocol("grid14"))
    for _, pixels in cells_of_14(np.zeros((30, 45))):
        assert len({int(step[pixel]) for pixel in pixels}) == 1


@pytest.mark.parametrize("seed", [0, 7])
def test_ties_follow_a_permutation_of_the_seed(seed):
    ranks = rank_units(torch.zeros(500), seed)
    assert sorted(ranks.tolist()) == list(range(500))
    assert torch.equal(ranks, rank_units(torch.full((500,), 3.0), seed))
    assert not torch.equal(ranks, rank_units(torch.zeros(500), seed + 1))
    assert 75 < int((ranks[:250] < 250).sum()) < 175  # not in reading order


def test_a_seed_only_decides_between_equal_values():
    values = torch.randint(0, 5, (300,), generator=seeded(0)).float()
    for seed in range(3):
        order = torch.argsort(rank_units(values, seed))
        assert torch.equal(values[order], values.sort(descending=True).values)


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


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    values=arrays(np.float32, (6, 7), elements=st.integers(-8, 8)),
    transform=st.sampled_from((lambda x: 3 * x + 2, lambda x: x**3, torch.exp, torch.atan, lambda x: x / 1024)),
)
def test_a_monotone_transform_of_the_map_changes_nothing(values, transform):
    protocol = Protocol("fifths", None, 5, "mean", "blur", False)
    score, plain = SmoothScore(1, (6, 7)), torch.from_numpy(values)[None]
    curves = perturbation_curves(
        score, some_images(1, (6, 7)), {"plain": plain, "bent": transform(plain)}, protocol, BOTH, mean=MEAN
    )
    for curve in BOTH:
        assert torch.equal(curves["plain"][curve], curves["bent"][curve])


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(values=arrays(np.float32, (14, 28), elements=st.integers(-8, 8)), power=st.integers(-3, 3))
def test_doubling_a_map_changes_nothing_for_cells(values, power):
    plain = torch.from_numpy(values)
    grid = get_protocol("grid14")
    assert torch.equal(change_step(plain, (14, 28), grid), change_step(plain * 2.0**power, (14, 28), grid))


def test_the_true_order_of_importance_has_the_best_areas():
    size = (8, 8)
    images = some_images(1, size, seed=2)
    weights = torch.randn(*size, generator=seeded(3))
    importance = weights * (images[0] - torch.tensor(MEAN).reshape(3, 1, 1)).mean(dim=0)
    maps = {"true": importance[None], "worst": -importance[None]}
    maps |= {f"random {seed}": distinct_map(size, seed) for seed in range(30)}
    protocol = Protocol("pixel by pixel", None, 64, "mean", "mean", False)
    curves = perturbation_curves(LinearScore(weights), images, maps, protocol, BOTH, mean=MEAN, batch_size=64)
    areas = {name: {c: float(area_under_curve(found[c])) for c in BOTH} for name, found in curves.items()}
    for name in areas.keys() - {"true"}:
        assert areas["true"][DELETION] < areas[name][DELETION]
        assert areas["true"][INSERTION] > areas[name][INSERTION]
    for name in areas.keys() - {"worst"}:
        assert areas["worst"][DELETION] > areas[name][DELETION]


@pytest.mark.parametrize("kind", ["mean", "blur", "black"])
@pytest.mark.parametrize("steps", [4, 16, 96])
def test_deleting_is_inserting_the_negative_map_read_backwards(kind, steps):
    size = (8, 12)
    images, score, values = some_images(1, size), SmoothScore(1, size), distinct_map(size)
    protocol = Protocol("mirror", None, steps, kind, kind, False)
    curves = perturbation_curves(score, images, {"map": values, "negative": -values}, protocol, BOTH, mean=MEAN)
    assert torch.equal(curves["map"][DELETION], curves["negative"][INSERTION].flip(1))
    assert not torch.equal(curves["map"][DELETION], curves["map"][INSERTION].flip(1))


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


def times_shown(score: SmoothScore, image: Tensor, which: int) -> int:
    return sum(w == which and torch.equal(seen, image) for seen, w in zip(score.shown, score.which, strict=True))


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


@pytest.mark.parametrize(
    ("curve", "area"),
    [
        ([1.0, 1.0], 1.0),
        ([1.0, 0.0], 0.5),
        ([0.8, 0.4, 0.2], 0.45),  # (0.8 + 0.4) / 2 / 2 + (0.4 + 0.2) / 2 / 2
        ([0.0, 0.0, 0.0, 0.0, 1.0], 0.125),
    ],
)
def test_area_is_the_trapezoid_sum_over_zero_to_one(curve, area):
    assert area_under_curve(torch.tensor([curve])).item() == pytest.approx(area, abs=1e-7)


def test_area_is_taken_per_image():
    assert area_under_curve(torch.tensor([[1.0, 0.0], [0.0, 0.5]])).tolist() == [0.5, 0.25]


def test_a_rescaled_deletion_curve_runs_from_one_to_zero():
    curve = torch.tensor([[0.75, 0.5, 0.25]])
    assert rescaled_curve(curve, clean=0, base=-1).tolist() == [[1.0, 0.5, 0.0]]


def test_a_rescaled_insertion_curve_runs_from_zero_to_one():
    curve = torch.tensor([[0.25, 1.0, 0.75]])
    assert rescaled_curve(curve, clean=-1, base=0).tolist() == [[0.0, 1.5, 1.0]]


def test_rescaling_is_undefined_where_the_ends_differ_by_less_than_a_hundredth():
    curve = torch.tensor([[0.5, 0.9, 0.4905], [0.5, 0.9, 0.489], [0.489, 0.9, 0.5], [0.5, 0.9, 0.5]])
    undefined = rescaled_curve(curve, clean=0, base=-1).isnan()
    assert undefined.all(dim=1).tolist() == [True, False, False, True]
    assert undefined.any(dim=1).tolist() == [True, False, False, True]
