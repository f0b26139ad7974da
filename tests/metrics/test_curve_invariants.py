import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from references.curves import (
    BOTH,
    DELETION,
    INSERTION,
    LEAST,
    MEAN,
    LinearScore,
    SmoothScore,
    distinct_map,
    seeded,
    some_images,
)

from attncompare.metrics.perturbation import (
    area_under_curve,
    change_step,
    perturbation_curves,
    rank_units,
)
from attncompare.metrics.protocols import Protocol
from attncompare.metrics.user_protocols import get_protocol


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
