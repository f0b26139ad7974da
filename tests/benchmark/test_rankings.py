import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest

from attncompare.benchmark.rankings import (
    critical_difference,
    image_agreement,
    images_needed,
    krippendorff_alpha,
    rank_methods,
    ranking_agreement,
    ranking_stability,
    score_table,
)
from attncompare.errors import SpecError

NONE = np.nan


def record(method: str, image: str, value: float | None, **columns) -> dict:
    base = {"model": "m", "measure": "insertion", "protocol": "rise", "status": "ok", "detail": "", "degenerate": False}
    return base | {"method": method, "image": image, "value": value} | columns


def noisy(images: int, gaps: float, noise: float, seed: int = 0) -> pd.DataFrame:
    """Four methods whose true means lie `gaps` apart."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (images, 1)) + gaps * np.arange(4) + noise * rng.normal(0, 1, (images, 4))
    return pd.DataFrame(values, columns=list("abcd"))


def test_a_table_is_turned_so_that_higher_is_better_and_keeps_its_gaps():
    rows = [record(m, i, v, measure="deletion") for m, i, v in (("a", "x", 0.2), ("a", "y", 0.3), ("b", "x", 0.1))]
    rows.append(record("b", "y", 9.0, measure="deletion", status="failed"))
    rows.append(record("c", "", None, measure="deletion", status="unsupported"))
    table = score_table(pd.DataFrame(rows), "m", "deletion")
    assert table.loc["x"].to_dict() == {"a": -0.2, "b": -0.1}
    assert table.loc["y", "a"] == -0.3 and math.isnan(table.loc["y", "b"])
    with pytest.raises(SpecError, match="grid14, rise; name one protocol"):
        score_table(
            pd.DataFrame([*rows, record("a", "x", 1.0, measure="deletion", protocol="grid14")]), "m", "deletion"
        )


def test_mean_ranks_are_over_images_that_every_method_has():
    table = pd.DataFrame({"a": [3, 2, 9, NONE], "b": [1, 2, 8, 5], "c": [2, 1, 7, 6], "d": [NONE] * 4})
    found = rank_methods(table)
    assert found.ranks.to_dict() == {"a": (1 + 1.5 + 1) / 3, "b": (3 + 1.5 + 2) / 3, "c": (2 + 3 + 3) / 3}
    assert list(found.ranks.index) == ["a", "b", "c"]
    assert (found.images, found.lost, found.left_out) == (3, 1, ("d",))


def test_the_critical_difference_is_that_of_demsars_table():
    # Demsar 2006: q = 2.343, 2.569, 2.728 for 3, 4, 5 methods; his example of 4 methods on 14 data sets gives 1.25
    for methods, q in ((2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)):
        assert critical_difference(methods, 20) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 120), rel=5e-4)


def test_methods_further_apart_than_the_critical_difference_differ():
    found = rank_methods(noisy(30, 0.5, 1.0))
    assert found.friedman_p < 0.05
    for a, b in itertools.combinations(found.ranks.index, 2):
        apart = abs(found.ranks[a] - found.ranks[b]) > found.critical_difference
        assert apart == (found.p.loc[a, b] < 0.05)
    assert {bool(found.p.loc[a, b] < 0.05) for a, b in itertools.combinations("abcd", 2)} == {True, False}


@pytest.mark.parametrize("table", [{"a": [1.0, 2], "b": [2.0, 1]}, {"a": [1.0], "b": [2.0], "c": [3.0]}, {"a": [1.0]}])
def test_too_little_for_a_test_has_ranks_and_no_p(table):
    found = rank_methods(pd.DataFrame(table))
    assert len(found.ranks) == len(table) and math.isnan(found.friedman_p) and found.p.isna().all(axis=None)


def test_one_image_or_method_has_no_critical_difference():
    for table in ({"a": [1.0], "b": [2.0], "c": [3.0]}, {"a": [1.0, 2.0]}):
        assert math.isnan(rank_methods(pd.DataFrame(table)).critical_difference)
    assert rank_methods(noisy(9, 1.0, 1.0)[["a", "b"]]).critical_difference == pytest.approx(1.96 / 3, rel=1e-3)


def test_where_all_methods_failed_all_images_are_lost():
    rows = [record(m, i, None, status="failed") for m in "ab" for i in "wxyz"]
    table = score_table(pd.DataFrame(rows), "m", "insertion")
    found = rank_methods(table)
    assert (found.images, found.lost, found.left_out, len(found.ranks)) == (0, 4, ("a", "b"), 0)
    assert math.isnan(found.critical_difference) and math.isnan(found.friedman_p)
    with pytest.raises(SpecError, match="needs two methods; of 2, 0 have a value"):
        ranking_stability(table)


def test_methods_that_always_tie_are_alike():
    found = rank_methods(pd.DataFrame({key: [0.5, 0.7, 0.2] for key in "abc"}))
    assert found.friedman_p == 1 and set(found.ranks) == {2.0}


def tau_by_hand(x, y) -> float:
    pairs = [(np.sign(a - b), np.sign(c - d)) for (a, c), (b, d) in itertools.combinations(zip(x, y, strict=True), 2)]
    agree = sum(s * t for s, t in pairs)
    return agree / math.sqrt(sum(s != 0 for s, _ in pairs) * sum(t != 0 for _, t in pairs))


def test_measures_and_protocols_agree_by_kendalls_tau_of_their_means():
    means = {
        ("insertion", "rise"): [0.9, 0.7, 0.7, 0.2], ("insertion", "grid14"): [0.8, 0.9, 0.4, 0.1],
        ("deletion", "rise"): [0.1, 0.3, 0.2, 0.4], ("sparseness", ""): [0.1, 0.2, 0.3, 0.4],
    }  # fmt: skip
    rows = [
        record(method, image, value + wobble, measure=measure, protocol=protocol)
        for (measure, protocol), values in means.items()
        for method, value in zip("abcd", values, strict=True)
        for image, wobble in (("x", -0.05), ("y", 0.05))
    ]
    rows += [record("e", "x", None, status="failed"), record("e", "x", 0.5, measure="sparseness", protocol="")]
    found = ranking_agreement(pd.DataFrame(rows)).set_index(["first", "second"])
    turned = {key: [-v if key[0] == "deletion" else v for v in values] for key, values in means.items()}
    names = {key: ", ".join(filter(None, key)) for key in means}
    for one, other in itertools.combinations(sorted(means), 2):
        row = found.loc[(names[one], names[other])]
        assert row.tau == pytest.approx(tau_by_hand(turned[one], turned[other]))
        assert row.methods == 4
    assert found.loc[("insertion, rise", "sparseness"), "left_out"] == 1


def test_alpha_is_that_of_krippendorffs_own_example():
    answers = """1 2 3 3 2 1 4 1 2 . . .
                 1 2 3 3 2 2 4 1 2 5 . 3
                 . 3 3 3 2 3 4 2 2 5 1 .
                 1 2 3 3 2 4 4 1 2 5 1 ."""
    table = np.array([[NONE if word == "." else float(word) for word in line.split()] for line in answers.splitlines()])
    assert krippendorff_alpha(table) == pytest.approx(0.815, abs=5e-4)


def alpha_by_hand(table: np.ndarray) -> float:
    """One less the mean ordinal distance within units over that between any two opinions."""
    units = [[v for v in column if not math.isnan(v)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    everything = [v for unit in units for v in unit]

    def distance(a: float, b: float) -> float:
        low, high = min(a, b), max(a, b)
        between = sum(low <= v <= high for v in everything)
        return (between - (everything.count(low) + everything.count(high)) / 2) ** 2 if a != b else 0.0

    inside = sum(distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2))
    overall = sum(distance(a, b) for a, b in itertools.permutations(everything, 2)) / (len(everything) - 1)
    return 1 - inside / overall


def test_alpha_is_observed_over_expected_disagreement():
    rng = np.random.default_rng(0)
    for _ in range(10):
        table = rng.integers(0, 4, (5, 6)).astype(float)
        table[rng.random(table.shape) < 0.2] = NONE
        assert krippendorff_alpha(table) == pytest.approx(alpha_by_hand(table))


def test_images_agree_wholly_by_chance_or_not_at_all():
    assert image_agreement(noisy(12, 1.0, 0.0)) == pytest.approx(1)
    assert image_agreement(noisy(400, 0.0, 1.0)) == pytest.approx(0, abs=0.02)
    assert 0.2 < image_agreement(noisy(50, 0.5, 1.0)) < 0.8
    assert math.isnan(krippendorff_alpha(np.ones((3, 4)))) and math.isnan(krippendorff_alpha(np.full((3, 4), NONE)))


def test_more_images_make_a_ranking_more_stable():
    curve = ranking_stability(noisy(128, 0.3, 1.0), seed=1)
    assert list(curve.n) == [2, 4, 8, 16, 32, 64]
    assert (curve.low <= curve.tau).all() and (curve.tau <= curve.high).all()
    assert curve.tau.iloc[-1] > curve.tau.iloc[0] + 0.3 and curve.same_best.iloc[-1] > curve.same_best.iloc[0]
    pd.testing.assert_frame_equal(curve, ranking_stability(noisy(128, 0.3, 1.0), seed=1))


def test_a_ranking_of_noise_is_not_stable_however_many_images():
    curve = ranking_stability(noisy(200, 0.0, 1.0), [50, 100], trials=300)
    assert curve.tau.abs().max() < 0.15 and images_needed(curve) is None


def test_the_number_of_images_needed_is_the_first_that_stays_enough():
    curve = pd.DataFrame({"n": [2, 4, 8, 16], "tau": [0.85, 0.7, 0.82, 0.9]})
    assert images_needed(curve) == 8
    assert images_needed(curve, 0.6) == 2
    assert images_needed(curve, 0.95) is None


def test_stability_needs_two_methods_and_is_undefined_where_they_tie():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SpecError, match="needs two methods; of 2, 1 have a value"):
            ranking_stability(noisy(16, 1, 1)[["a"]].assign(b=NONE))
        curve = ranking_stability(noisy(16, 1, 1)[["a"]].eval("b = a"))
    assert curve[["tau", "low", "high"]].isna().all(axis=None) and images_needed(curve) is None


@pytest.mark.parametrize("sizes", [[9], [0], [4, 100]])
def test_two_samples_must_fit_into_the_images(sizes):
    with pytest.raises(SpecError, match="16 images have a value of every method"):
        ranking_stability(noisy(16, 1, 1), sizes)
