"""Maps, scores and refusals of eight small models are what they were: `python tests/golden/make.py` stored them.

A change that is meant to move a number makes all anew (--all) and raises the method's or metric's version.
"""

from itertools import product

import numpy as np
import pytest

import attncompare as ac
from golden.files import read_maps, read_scores
from golden.models import IMAGES, MODELS, SCORED
from golden.values import map_of, scores_of

MAPS, SCORES = read_maps(), read_scores()
HOW = "run python tests/golden/make.py"
TOLERANCE = 1e-5  # of a map's range, as in benchmarks/conformance.py
# Two threads, kernels without AVX, or none of oneDNN's move these by 4e-6 to 2e-5: they are differences of scores that
# nearly agree, or sums of features that nearly cancel. All others move by 3e-6 at most.
ROUNDING = dict.fromkeys(
    ("ablation_cam", "grad_cam", "kernel_shap", "layer_cam", "lime", "occlusion", "xgrad_cam"), 1e-4
)
# A unit of this network of ReLUs is zero at rounding level for one noisy copy of one image. Where other kernels turn it on,
# the 16 x 16 pixels that it sees change by 1.8e-4 of the range.
KINKS = {("se_cnn", "smooth_grad"): 1e-3}
NOISE = {("clip", "transformer_lrp"): 1e-8}  # relevance of a cosine sums to 0: what is left is rounding, near 1e-10


def close(model, method, found, expected):
    """Image by image, to a share of that map's range; a constant map is to be met exactly."""
    span = np.ptp(expected.reshape(IMAGES, -1), axis=1)
    share = KINKS.get((model, method), ROUNDING.get(method, TOLERANCE))
    allowed = np.full(IMAGES, NOISE.get((model, method), 0.0)) + share * span
    return np.abs(found - expected).reshape(IMAGES, -1).max(axis=1) <= allowed


@pytest.mark.parametrize("method", ac.list_methods())
@pytest.mark.parametrize("model", MODELS)
def test_a_map_is_what_it_was_or_is_refused_as_it_was(model, method):
    assert (model, method) in MAPS, f"{method} on {model} has no golden map; {HOW}"
    expected, found = MAPS[model, method], map_of(model, method)
    if isinstance(expected, str) or isinstance(found, str):
        assert isinstance(found, str) and isinstance(expected, str), f"was {expected}, is {found}"
        assert found == expected
    else:
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        assert close(model, method, found, expected).all(), np.abs(found - expected).max()


# The same kernels move scores by 3e-5 of the largest at most, where the order of pixels is exact. A coarse map is enlarged
# first: that rounds too, and pixels that nearly tie change places, which is 1e-2 of these scores.
SCORE_TOLERANCE, ORDER_TOLERANCE = 1e-4, 5e-2
ORDERED = {"deletion", "deletion_normalised", "insertion", "insertion_normalised", "lerf", "morf", "rank_correlation"}
ORDERED |= {"road", "road_lerf", "road_morf", "srg"}


def allowed(key):
    """The share of the largest score by which a score may differ."""
    return ORDER_TOLERANCE if key[1] != "saliency" and key[2] in ORDERED else SCORE_TOLERANCE


@pytest.mark.parametrize("metric", ac.list_metrics())
@pytest.mark.parametrize("model", MODELS)
def test_scores_are_what_they_were(model, metric):
    expected = {key: value for key, value in SCORES.items() if (key[0], key[2]) == (model, metric)}
    found = scores_of(model, metric, {method: MAPS[model, method] for method in SCORED[model]})
    assert found.keys() == expected.keys(), f"{sorted(found.keys() ^ expected.keys())} have no golden score; {HOW}"
    largest = max((abs(value) for value in expected.values() if not isinstance(value, str)), default=0.0)
    for key, value in expected.items():
        if isinstance(value, str) or isinstance(found[key], str):
            assert found[key] == value, key
        else:
            assert abs(found[key] - value) <= allowed(key) * largest, (key, found[key], value)


def test_no_number_is_left_of_what_is_gone():
    assert MAPS.keys() == set(product(MODELS, ac.list_methods())), f"to drop what is gone, {HOW}"
    assert {key[2] for key in SCORES} == set(ac.list_metrics()), f"to drop what is gone, {HOW}"
