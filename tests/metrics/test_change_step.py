import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from references.curves import cells_of_14, seeded, some_map

from attncompare.metrics.perturbation import (
    change_step,
    order_units,
    rank_units,
)
from attncompare.metrics.protocols import Protocol
from attncompare.metrics.user_protocols import get_protocol


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


@given(
    arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0]) | st.floats(width=32, allow_nan=False),
    )
)
def test_units_are_ordered_as_by_a_stable_argsort(values):
    found = torch.from_numpy(values)
    shuffled = torch.randperm(len(found), generator=seeded(3))
    expected = shuffled[torch.argsort(found[shuffled], descending=True, stable=True)]
    assert torch.equal(order_units(found, seed=3), expected)
    assert torch.equal(order_units(found.double(), seed=3), expected)
