"""Maps made small for the page lose nothing that matters there."""

import base64
import io

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attncompare.metrics.perturbation import rank_units
from attncompare.reporting.levels import EXACT, LEVELS, Levels


def decoded(levels):
    """As the page reads them: one plane of the picture, or the high bytes above the low ones."""
    h, w = levels.level.shape
    kind, _, content = levels.text().rpartition(",")
    content = base64.b64decode(content)
    if kind:
        assert kind == "data:image/png;base64" and h * w > 1000
        planes = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    else:
        planes = np.frombuffer(content, np.uint8).astype(int).reshape(-1, w)
    return levels.value[planes if len(levels.value) <= LEVELS else planes[:h] * 256 + planes[h:]]


def test_small_maps_come_back_as_they_were():
    for side in (7, 14, 28, 32):
        values = np.random.default_rng(side).normal(size=(side, side)).astype(np.float32)
        np.testing.assert_array_equal(decoded(Levels.of(values)), values)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), steps=st.integers(2, 255), zeros=st.floats(0, 0.9))
def test_no_level_lies_on_both_sides_of_a_step(seed, steps, zeros):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(40, 50)).astype(np.float32)
    values[rng.random(values.shape) < zeros] = 0
    levels = Levels.of(values, steps, seed)
    assert len(np.unique(values)) <= EXACT or len(levels.value) <= LEVELS
    assert (np.diff(levels.value) <= 0).all()
    ends = np.rint(np.arange(1, steps + 1) * values.size / steps)
    step = np.searchsorted(ends, rank_units(torch.from_numpy(values.ravel()), seed).numpy(), side="right")
    again = np.searchsorted(ends, rank_units(torch.from_numpy(decoded(levels).ravel()), seed).numpy(), side="right")
    np.testing.assert_array_equal(again, step)


def test_large_maps_keep_their_values_to_the_width_of_a_level():
    values = np.random.default_rng(0).random((100, 100)).astype(np.float32)
    assert np.abs(decoded(Levels.of(values)) - values).max() < 1.5 / LEVELS
