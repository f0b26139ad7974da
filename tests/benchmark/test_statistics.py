import gc
import itertools
import warnings
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from attncompare.benchmark import statistics
from attncompare.benchmark.statistics import cliffs_delta, compare_pairs, mean_interval, summarize


def record(method: str, image: str, value: float | None, **columns) -> dict:
    base = {"model": "m", "measure": "deletion", "protocol": "rise", "status": "ok", "detail": "", "degenerate": False}
    return base | {"method": method, "image": image, "value": value} | columns


def scores(**methods: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [record(method, f"i{i}", value) for method, values in methods.items() for i, value in enumerate(values)]
    )


def wilcoxon_by_hand(differences: list[float]) -> float:
    """Two-sided exact p: how many of all sign patterns give a rank sum at least as far from the middle."""
    order = sorted(range(len(differences)), key=lambda i: abs(differences[i]))
    rank = {index: place + 1 for place, index in enumerate(order)}
    middle = sum(rank.values()) / 2
    seen = abs(sum(rank[i] for i, d in enumerate(differences) if d > 0) - middle)
    patterns = list(itertools.product((False, True), repeat=len(differences)))
    extreme = sum(abs(sum(rank[i] for i, up in enumerate(pattern) if up) - middle) >= seen for pattern in patterns)
    return extreme / len(patterns)


def holm_by_hand(p: list[float]) -> list[float]:
    """The smallest p times the number of tests, the next times one less, and so on; never decreasing, at most 1."""
    corrected, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, p[index] * (len(p) - place)))
        corrected[index] = largest
    return corrected


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(2, 1, 25), seed=i) for i in range(120)]
    assert 0.87 <= np.mean([low <= 2 <= high for low, high in intervals]) <= 1
    assert np.mean([high - low for low, high in intervals]) == pytest.approx(2 * 1.96 / 5, rel=0.15)


def test_the_interval_surrounds_the_mean_and_depends_on_nothing_but_values_and_seed():
    values = np.random.default_rng(1).exponential(size=30)
    low, high = mean_interval(values, seed=4)
    assert values.min() < low < values.mean() < high < values.max()
    assert mean_interval(values.copy(), seed=4) == (low, high)


def bca_by_hand(values: np.ndarray, seed: int) -> list[float]:
    """Efron and Tibshirani 1993, equations 14.9 to 14.15: quantiles of the resampled means, moved for bias and skew."""
    normal, count = NormalDist(), len(values)
    means = values[np.random.default_rng(seed).integers(0, count, (2000, count))].mean(axis=1)
    bias = normal.inv_cdf((means < values.mean()).mean())
    left = values.mean() - np.array([np.delete(values, i).mean() for i in range(count)])
    skew = (left**3).sum() / (6 * (left**2).sum() ** 1.5)
    ends = [bias + normal.inv_cdf(share) for share in (0.025, 0.975)]
    return [float(np.quantile(means, normal.cdf(bias + end / (1 - skew * end)))) for end in ends]


def test_the_interval_is_bca_of_two_thousand_seeded_means():
    values = np.random.default_rng(7).exponential(size=12)
    assert mean_interval(values, seed=3) == pytest.approx(bca_by_hand(values, seed=3), rel=1e-6)
    percentile = np.quantile(values[np.random.default_rng(3).integers(0, 12, (2000, 12))].mean(axis=1), [0.025, 0.975])
    assert np.abs(np.array(mean_interval(values, seed=3)) - percentile).max() > 0.01


def test_more_values_give_a_narrower_interval():
    values = np.random.default_rng(2).normal(size=20)
    low, high = mean_interval(values)
    narrow_low, narrow_high = mean_interval(np.tile(values, 16))
    assert (narrow_high - narrow_low) < (high - low) / 3


@pytest.mark.parametrize("values", [[0.25] * 8, [3.0], [0.0, 0.0]])
def test_constant_values_have_an_interval_of_no_width(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_interval(np.array(values)) == (values[0], values[0])


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0 + 1e-12, 1.0], [5.0, 5.0, 5.0, -5.0]])
def test_odd_samples_still_have_a_finite_interval_in_order(values):
    low, high = mean_interval(np.array(values))
    assert min(values) <= low <= high <= max(values)


def test_a_summary_has_one_row_per_model_method_measure_and_protocol():
    rows = [
        record(method, image, 0.5, model=model, measure=measure, protocol=protocol)
        for model in "ab"
        for method in ("cam", "rise")
        for measure, protocol in (("deletion", "rise"), ("deletion", "grid14"), ("energy_inside", ""))
        for image in ("x", "y", "z")
    ]
    summary = summarize(pd.DataFrame(rows))
    assert len(summary) == 12
    assert not summary.duplicated(["model", "method", "measure", "protocol"]).any()
    assert (summary.n == 3).all() and (summary["mean"] == 0.5).all()


def test_a_mean_is_taken_over_the_images_that_have_a_value():
    rows = [record("cam", f"i{i}", value) for i, value in enumerate((0.2, 0.4, 0.9))]
    rows += [record("cam", "i3", np.nan, status="failed", detail="blank map")]
    rows += [record("cam", "i4", None, status="failed", detail="another")]
    rows += [record("cam", "i5", None, status="unsupported", detail="no attention")]
    row = summarize(pd.DataFrame(rows)).iloc[0]
    assert row["mean"] == pytest.approx(0.5)
    assert (row.n, row.failed, row.unsupported) == (3, 2, 1)
    assert row.detail == "blank map"
    assert (row.low, row.high) == mean_interval(np.array([0.2, 0.4, 0.9]))


def test_a_value_is_not_counted_unless_its_record_is_ok():
    rows = [record("cam", "a", 0.2), record("cam", "b", 100.0, status="failed", detail="stale")]
    assert summarize(pd.DataFrame(rows)).iloc[0]["mean"] == pytest.approx(0.2)


def test_a_method_without_any_value_has_a_row_and_no_mean():
    rows = [record("cam", "a", 0.2), record("rollout", "a", None, status="unsupported", detail="no attention")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarize(pd.DataFrame(rows)).set_index("method")
    assert summary.loc["rollout", ["mean", "low", "high"]].isna().all()
    assert (summary.loc["rollout", "n"], summary.loc["rollout", "unsupported"]) == (0, 1)
    assert summary.loc["rollout", "detail"] == "no attention"
    assert summary.loc["cam", "mean"] == pytest.approx(0.2)


def test_constant_maps_are_counted_and_still_averaged():
    rows = [record("cam", "a", 0.2, degenerate=True), record("cam", "b", 0.4)]
    row = summarize(pd.DataFrame(rows)).iloc[0]
    assert (row.degenerate, row.n) == (1, 2) and row["mean"] == pytest.approx(0.3)


THREE = {
    "cam": [0.10, 0.21, 0.33, 0.47, 0.52, 0.68, 0.71],
    "rise": [0.13, 0.22, 0.30, 0.55, 0.66, 0.92, 0.99],
    "saliency": [0.30, 0.50, 0.51, 0.79, 1.00, 1.31, 1.50],
}


def test_pairs_are_compared_by_wilcoxon_on_the_same_images():
    compared = compare_pairs(scores(**THREE), "deletion")
    assert list(zip(compared["first"], compared["second"], strict=True)) == list(itertools.combinations(THREE, 2))
    for row in compared.itertuples():
        differences = [a - b for a, b in zip(THREE[row.first], THREE[row.second], strict=True)]
        assert row.n == 7
        assert row.difference == pytest.approx(np.mean(differences))
        assert row.p == pytest.approx(wilcoxon_by_hand(differences))
        assert row.low < row.difference < row.high
    assert compared.p.min() == pytest.approx(2 / 2**7)


def test_p_values_are_corrected_by_holm_within_a_model():
    compared = compare_pairs(scores(**THREE), "deletion")
    assert compared.p_holm.tolist() == pytest.approx(holm_by_hand(compared.p.tolist()))
    assert (compared.p_holm >= compared.p).all() and (compared.p_holm > compared.p).any()
    other = scores(cam=THREE["cam"], rise=THREE["rise"]).assign(model="n")
    both = compare_pairs(pd.concat([scores(**THREE), other]), "deletion")
    pd.testing.assert_frame_equal(both[both.model == "m"], compared)
    alone = both[both.model == "n"].iloc[0]
    assert alone.p_holm == alone.p == pytest.approx(wilcoxon_by_hand(np.subtract(THREE["cam"], THREE["rise"]).tolist()))


def test_only_images_that_both_methods_have_are_compared():
    frame = scores(**THREE)
    frame.loc[(frame.method == "cam") & (frame.image == "i0"), ["status", "value"]] = ["failed", np.nan]
    frame = frame[~((frame.method == "rise") & (frame.image == "i6"))]
    compared = compare_pairs(frame, "deletion").set_index(["first", "second"])
    kept = [b - a for a, b in zip(THREE["rise"][1:6], THREE["cam"][1:6], strict=True)]
    assert compared.n.to_dict() == {("cam", "rise"): 5, ("cam", "saliency"): 6, ("rise", "saliency"): 6}
    assert compared.loc[("cam", "rise"), "difference"] == pytest.approx(np.mean(kept))
    assert compared.loc[("cam", "rise"), "p"] == pytest.approx(wilcoxon_by_hand(kept))


def test_methods_are_paired_by_image_and_not_by_row():
    frame = scores(**THREE)
    shuffled = frame.sample(frac=1, random_state=0).reset_index(drop=True)
    pd.testing.assert_frame_equal(compare_pairs(frame, "deletion"), compare_pairs(shuffled, "deletion"))


def test_equal_methods_do_not_differ():
    row = compare_pairs(scores(a=[0.1, 0.2, 0.3], b=[0.1, 0.2, 0.3]), "deletion").iloc[0]
    assert (row.difference, row.low, row.high, row.p, row.p_holm) == (0, 0, 0, 1, 1)


def test_other_measures_do_not_enter_a_comparison():
    frame = scores(**THREE)
    noise = frame.assign(measure="insertion", value=0.0)
    pd.testing.assert_frame_equal(
        compare_pairs(pd.concat([frame, noise]), "deletion"), compare_pairs(frame, "deletion")
    )


def test_methods_without_a_common_image_are_not_compared():
    frame = pd.DataFrame([record("a", "x", 0.1), record("a", "y", 0.2), record("b", "z", 0.3), record("c", "x", 0.5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compared = compare_pairs(frame, "deletion")
    assert list(zip(compared["first"], compared["second"], strict=True)) == [("a", "c")]
    assert compared.difference.iloc[0] == pytest.approx(-0.4)


def test_one_method_alone_is_compared_with_nothing():
    assert compare_pairs(scores(cam=[0.1, 0.2]), "deletion").empty


def test_cliffs_delta_counts_pairs_above_less_pairs_below():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 7).astype(float), rng.integers(0, 6, 9).astype(float)
        signs = [np.sign(a - b) for a in first for b in second]
        assert cliffs_delta(first, second) == pytest.approx(np.mean(signs))
        assert cliffs_delta(second, first) == pytest.approx(-np.mean(signs))
    assert cliffs_delta(np.array([3.0, 4]), np.array([1.0, 2])) == 1
    assert cliffs_delta(np.ones(3), np.ones(4)) == 0


def test_images_that_a_pair_lost_and_constant_maps_are_counted():
    rows = [record(method, f"i{i}", 0.1 * i + (method == "rise")) for method in ("cam", "rise") for i in range(6)]
    rows[0] |= {"status": "failed", "value": None}
    rows[8] |= {"degenerate": True}
    row = compare_pairs(pd.DataFrame(rows), "deletion").iloc[0]
    assert (row.n, row.lost, row.degenerate) == (5, 1, 1)
    assert row.cliffs_delta == cliffs_delta(np.arange(1, 6) * 0.1, np.arange(1, 6) * 0.1 + 1) == -1


def test_protocols_are_compared_apart():
    frame = scores(**THREE)
    both = compare_pairs(
        pd.concat([frame, frame.assign(protocol="grid14", value=lambda f: 1 - f["value"])]), "deletion"
    )
    assert both.groupby("protocol").size().to_dict() == {"grid14": 3, "rise": 3}
    apart = both[both.protocol == "rise"].reset_index(drop=True)
    pd.testing.assert_frame_equal(apart, compare_pairs(frame, "deletion"))


def simulated(trial: int, images: int, methods: int) -> pd.DataFrame:
    """Equal methods as they occur: skewed scores of hard and easy images, correlated between methods."""
    rng = np.random.default_rng([trial, 5])
    hard = rng.beta(2, 5, images)
    return scores(**{f"m{k}": list(np.clip(hard + rng.normal(0, 0.1, images), 0, 1)) for k in range(methods)})


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "trials", "most"), [(2, 2000, 0.06), (5, 300, 0.075)])
def test_equal_methods_are_rarely_told_apart(methods, trials, most, monkeypatch):
    """Of 2,000 comparisons of two equal methods at most 6 % see a difference (5 %, and two standard errors of 0.5 %).

    With five methods, ten pairs and Holm's correction the fewer trials allow two standard errors of 1.26 %.
    """
    monkeypatch.setattr(statistics, "mean_interval", lambda values, seed=0: (0.0, 0.0))  # has its own simulation below
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)  # statsmodels collects after every correction: 0.1 s each
    found = [compare_pairs(simulated(trial, 24, methods), "deletion").p_holm.min() < 0.05 for trial in range(trials)]
    assert 0.01 <= np.mean(found) <= most


@pytest.mark.slow
def test_intervals_of_equal_methods_leave_out_zero_about_as_rarely_as_they_say():
    found = []
    for trial in range(400):
        rng = np.random.default_rng([trial, 6])
        low, high = mean_interval(rng.normal(0, 0.1, 40), seed=trial)
        found.append(not low <= 0 <= high)
    assert 0.02 <= np.mean(found) <= 0.085  # 6 % for 40 values, which a bootstrap takes for all there are, +- 2 x 1.2 %


def test_a_real_difference_is_found(monkeypatch):
    monkeypatch.setattr(statistics, "mean_interval", lambda values, seed=0: (0.0, 0.0))
    found = []
    for trial in range(20):
        frame = simulated(trial, 24, 2)
        frame.loc[frame.method == "m1", "value"] += 0.15
        found.append(compare_pairs(frame, "deletion").p_holm.min() < 0.05)
    assert np.mean(found) > 0.9
