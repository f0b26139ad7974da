"""Metrics of two maps, and compare_maps."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import attncompare as ac
from attncompare.errors import SpecError, UnknownNameError
from attncompare.maps import AttributionMap, resize_map
from attncompare.metrics.rank_correlation import rank_correlation
from attncompare.metrics.ssim import ssim
from attncompare.metrics.top_k_overlap import top_k_overlap

ALL = [rank_correlation, ssim, top_k_overlap]


def some(seed: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 20, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ALL)
def test_a_map_agrees_with_itself_and_the_order_of_the_two_does_not_matter(metric):
    tied = (some(0) > 0.5).float()
    torch.testing.assert_close(metric(some(0), some(0)), torch.ones(3))
    torch.testing.assert_close(metric(tied, tied), torch.ones(3))
    torch.testing.assert_close(metric(some(0), tied), metric(tied, some(0)))
    assert (metric(some(0), some(1)) < 0.6).all()


@pytest.mark.parametrize("metric", ALL)
def test_scale_and_offset_do_not_matter(metric):
    torch.testing.assert_close(metric(some(0), some(1)), metric(8 * some(0) + 3, some(1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("place", [0, 1])
def test_a_constant_map_agrees_with_nothing(metric, place):
    pair = [some(0), some(1)]
    pair[place][1] = 0.25
    assert metric(*pair).isnan().tolist() == [False, True, False]


def test_rank_correlation_is_spearmans_with_ties_at_their_mean():
    first, second = (some(0) * 3).round(), some(1) + some(0)
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-6)


def test_the_opposite_order_correlates_with_minus_one():
    assert rank_correlation(some(0), -some(0).exp()).tolist() == [-1, -1, -1]


def structural_similarity_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, at every place where the 11 x 11 Gaussian window fits."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2, found = 0.01**2, 0.03**2, []
    for i, j in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
        a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        both = (window * (a - mean_a) * (b - mean_b)).sum()
        top, bottom = (2 * mean_a * mean_b + c1) * (2 * both + c2), (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        found.append(top / bottom)
    return float(np.mean(found))


def test_ssim_is_the_mean_over_gaussian_windows():
    first, second = some(0, 1), some(0, 1) + 0.7 * some(1, 1)
    scaled = [(one[0] - one.min()).numpy() / float(one.max() - one.min()) for one in (first, second)]
    assert ssim(first, second).item() == pytest.approx(structural_similarity_by_hand(*scaled), abs=1e-5)


def test_ssim_needs_room_for_its_window():
    small = torch.rand(1, 10, 30)
    assert ssim(small, small).isnan().all()


def test_top_k_counts_the_pixels_in_common():
    first = torch.tensor([[[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]]])
    second = torch.tensor([[[9.0, 0.0, 8.0, 7.0, 0.0, 0.0, 0.0, 6.0]]])
    assert top_k_overlap(first, second, share=0.5).item() == pytest.approx(3 / 4)  # {0, 1, 2, 3} and {0, 2, 3, 7}
    assert top_k_overlap(first, second, share=0.25).item() == pytest.approx(1 / 2)  # {0, 1} and {0, 2}
    assert top_k_overlap(first, second, share=1.0).item() == 1


def test_pixels_that_tie_at_the_border_count_in_part():
    first = torch.tensor([[[5.0, 1.0, 1.0, 0.0]]])  # two places: the first, and half of each of the tied ones
    second = torch.tensor([[[0.0, 5.0, 4.0, 0.0]]])
    assert top_k_overlap(first, second, share=0.5).item() == pytest.approx((0.5 + 0.5) / 2)


def test_of_its_parts_in_two_tied_maps_a_pixel_counts_the_smaller():
    first = torch.tensor([[[5.0, 1.0, 1.0, 0.0]]])  # parts 1, 1/2, 1/2, 0
    second = torch.tensor([[[5.0, 2.0, 2.0, 2.0]]])  # parts 1, 1/3, 1/3, 1/3
    assert top_k_overlap(first, second, share=0.5).item() == pytest.approx((1 + 1 / 3 + 1 / 3) / 2)


def test_unrelated_maps_share_about_what_chance_gives():
    many = [torch.rand(40, 30, 30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert top_k_overlap(*many, share=0.2).mean().item() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("share", [1.5, -0.1, 0.0, "half", True])
def test_a_share_that_is_none_is_refused(share):
    one = AttributionMap(some(0), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(SpecError, match="share must"):
        ac.compare_maps(one, one, metrics=[("top_k_overlap", {"share": share})])


def test_maps_of_two_models_are_compared_at_one_size():
    first = AttributionMap(some(0), torch.tensor([1, 2, 3]), model="a", method="cam")
    second = AttributionMap(resize_map(some(0), (40, 32)), first.target, model="b", method="cam")
    records = ac.compare_maps(first, second, size=(40, 32))
    assert {r.measure for r in records} == {"rank_correlation", "ssim", "top_k_overlap"}
    assert {(r.model, r.method, r.status, r.protocol) for r in records} == {("a | b", "cam", "ok", "")}
    assert all(r.value == pytest.approx(1, abs=1e-5) for r in records)
    set_apart = ac.compare_maps(first, second, metrics=[("top_k_overlap", {"share": 0.3})])
    assert {r.protocol for r in set_apart} == {"share=0.3"}
    assert set_apart[0].key != ac.compare_maps(first, second, metrics=["top_k_overlap"])[0].key


def test_a_constant_map_is_a_record_with_a_reason():
    first = AttributionMap(some(0), torch.tensor([1, 2, 3]), method="cam")
    flat = AttributionMap(torch.ones(3, 4, 4), first.target, method="flat")
    for record in ac.compare_maps(first, flat):
        assert (record.status, record.value) == ("failed", None) and "constant" in record.detail


def test_what_cannot_be_compared_is_refused():
    one = AttributionMap(some(0), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(SpecError, match="3 and 2 images"):
        ac.compare_maps(one, AttributionMap(some(1, 2), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(SpecError, match="channels"):
        ac.compare_maps(one, AttributionMap(torch.rand(3, 7), one.target))
    with pytest.raises(SpecError, match="deletion scores one map"):
        ac.compare_maps(one, one, metrics=["deletion"])
    with pytest.raises(UnknownNameError):
        ac.compare_maps(one, one, metrics=["rank_corelation"])
    with pytest.raises(SpecError, match="not finite"):
        ac.compare_maps(one, AttributionMap(torch.full((3, 4, 4), torch.inf), one.target))
