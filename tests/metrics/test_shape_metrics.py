"""Sparseness and complexity: of the map alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attncompare.metrics.complexity import complexity
from attncompare.metrics.sparseness import sparseness

maps = arrays(np.float32, (4, 5), elements=st.floats(-8, 8, width=16))


def gini_by_pairs(values) -> float:
    """Half the mean absolute difference of all pairs, over the mean: the index as it is defined."""
    flat = [abs(float(v)) for v in np.asarray(values).ravel()]
    pairs = sum(abs(a - b) for a in flat for b in flat) / len(flat) ** 2
    return pairs / (2 * sum(flat) / len(flat))


def entropy_by_hand(values) -> float:
    flat = [abs(float(v)) for v in np.asarray(values).ravel()]
    shares = [v / sum(flat) for v in flat if v]
    return -sum(share * math.log(share) for share in shares)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(maps.filter(lambda values: np.abs(values).sum() > 1e-3))
def test_sparseness_is_half_the_mean_difference_of_pairs(values):
    assert sparseness(torch.from_numpy(values)[None]).item() == pytest.approx(gini_by_pairs(values), abs=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(maps.filter(lambda values: np.abs(values).sum() > 1e-3))
def test_complexity_is_the_entropy_of_the_shares(values):
    found = complexity(torch.from_numpy(values)[None]).item()
    assert found == pytest.approx(entropy_by_hand(values), abs=1e-5)
    assert 0 <= found <= math.log(20) + 1e-6


def test_one_pixel_is_sparse_and_simple_and_a_flat_map_is_neither():
    flat, spike = torch.full((1, 3, 4), -2.0), torch.zeros(1, 3, 4)
    spike[0, 1, 2] = 5
    assert sparseness(flat).item() == pytest.approx(0, abs=1e-7)
    assert sparseness(spike).item() == pytest.approx(1 - 1 / 12)
    assert complexity(spike).item() == 0
    assert complexity(flat).item() == pytest.approx(math.log(12))


@pytest.mark.parametrize("metric", [sparseness, complexity])
def test_sign_scale_and_order_do_not_matter(metric):
    values = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(metric(values), metric(-7 * values.flip(1)))


@pytest.mark.parametrize("metric", [sparseness, complexity])
def test_a_map_of_zeros_has_no_value(metric):
    values = torch.stack([torch.zeros(3, 3), torch.eye(3)])
    assert metric(values).isnan().tolist() == [True, False]
