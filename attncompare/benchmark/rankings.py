"""Who is best, how sure that is, and whether metrics, protocols and images agree about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from attncompare.errors import SpecError
from attncompare.metrics._base import metrics


def score_table(records: pd.DataFrame, model: str, measure: str, protocol: str | None = None) -> pd.DataFrame:
    """(image x method) values of one measure on one model, higher is better, NaN where a method failed.

    Raises SpecError when the records hold several protocols and none is named.
    """
    rows = records[(records.model == model) & (records.measure == measure) & (records.image != "")]
    found = sorted(set(rows.protocol))
    if protocol is None and len(found) > 1:
        raise SpecError(f"{measure} was scored under {', '.join(found)}; name one protocol")
    rows = rows if protocol is None else rows[rows.protocol == protocol]
    values = rows.assign(value=rows["value"].where(rows.status == "ok")).pivot(
        index="image", columns="method", values="value"
    )
    return values.astype(np.float64) * (1 if metrics.get(measure).better == "higher" else -1)


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of the methods over the images that all of them have a value of.

    ranks: method -> mean rank, 1 is best, ties share their mean. images, lost: how many were ranked, and how many were not
    because a method failed on them. left_out: methods without any value. friedman_p: that all methods are alike.
    critical_difference: mean ranks further apart differ at the 5 % level (Nemenyi); NaN for one image or method.
    p: (method x method) of Nemenyi's test.
    """

    ranks: pd.Series
    images: int
    lost: int
    left_out: tuple[str, ...]
    friedman_p: float
    critical_difference: float
    p: pd.DataFrame


def critical_difference(methods: int, images: int) -> float:
    """Return q sqrt(k (k + 1) / (6 n)), q the studentized range at 5 % over sqrt 2 (Demsar, JMLR 7, 2006, 3.2.2).

    NaN for fewer than two images or methods: one ranking does not say how much ranks vary.

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    if min(methods, images) < 2:
        return float("nan")
    q = stats.studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * images)))


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """The methods that have any value, on the images that all of these have a value of; no image where no method has any."""
    present = table.dropna(axis=1, how="all")
    return present.dropna() if len(present.columns) else present.iloc[:0]  # dropna keeps the rows of no columns


def rank_methods(table: pd.DataFrame) -> Ranking:
    """Mean ranks and their critical difference from (image x method) values where higher is better.

    >>> rank_methods(pd.DataFrame({"a": [3.0, 2.0], "b": [1.0, 1.0], "c": [2.0, 3.0]})).ranks.to_dict()
    {'a': 1.5, 'c': 1.5, 'b': 3.0}
    """
    import scikit_posthocs

    whole = _complete(table)
    counts = len(whole), len(whole.columns)
    ranks = whole.rank(axis=1, ascending=False).mean().sort_values()
    lost = len(table) - len(whole)
    left_out = tuple(sorted(set(table.columns) - set(whole.columns)))
    distance = critical_difference(counts[1], counts[0])
    if counts[0] < 2 or counts[1] < 3:
        unknown = pd.DataFrame(np.nan, index=ranks.index, columns=ranks.index)
        return Ranking(ranks, counts[0], lost, left_out, float("nan"), distance, unknown)
    alike = bool((whole.nunique(axis=1) == 1).all())
    friedman = 1.0 if alike else float(stats.friedmanchisquare(*whole.to_numpy().T).pvalue)
    p = scikit_posthocs.posthoc_nemenyi_friedman(whole.reset_index(drop=True))
    return Ranking(ranks, counts[0], lost, left_out, friedman, distance, p)


def ranking_agreement(records: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau-b between the orders that every two measures (under their protocols) give the methods of a model.

    Methods are ordered by their mean over images; those that lack either mean are left out and counted. Columns: model,
    first, second ("measure" or "measure, protocol"), methods, left_out, tau, p; tau is NaN for fewer than two methods or
    where all tie.
    """
    rows = []
    scored = records[records.measure.isin(metrics.names()) & (records.image != "")]
    for model, group in scored.groupby("model", sort=True):
        means = {}
        for measure, protocol in sorted(set(zip(group.measure, group.protocol, strict=True))):
            name = f"{measure}, {protocol}" if protocol else str(measure)
            means[name] = score_table(group, str(model), measure, protocol).mean()
        table = pd.DataFrame(means)
        for first, second in combinations(table.columns, 2):
            both = table[[first, second]].dropna()
            tau, p = stats.kendalltau(both[first], both[second]) if len(both) > 1 else (np.nan, np.nan)
            row = {"model": model, "first": first, "second": second, "methods": len(both)}
            rows.append(row | {"left_out": len(table) - len(both), "tau": float(tau), "p": float(p)})
    return pd.DataFrame(rows)


def krippendorff_alpha(table: NDArray[np.float64]) -> float:
    """Ordinal agreement of raters (rows) about units (columns), NaN where a rater has no opinion: 1 perfect, 0 chance.

    With images as raters and each image's ranks of the methods as opinions it says whether the images agree about the
    methods (Krippendorff, Content Analysis, chapter 11; used so by Tomsett et al., arXiv:1912.01451). NaN when no unit has
    two opinions or all opinions are one.
    """
    units = [column[~np.isnan(column)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return float("nan")
    levels, codes = np.unique(np.concatenate(units), return_inverse=True)
    together = np.zeros((len(levels), len(levels)))
    for unit in np.split(codes, np.cumsum([len(unit) for unit in units])[:-1]):
        count = np.bincount(unit, minlength=len(levels)).astype(np.float64)
        together += (np.outer(count, count) - np.diag(count)) / (len(unit) - 1)
    total = together.sum(axis=0)
    place = np.cumsum(total) - total / 2
    distance = (place[:, None] - place[None, :]) ** 2
    expected = (np.outer(total, total) * distance).sum() / (total.sum() - 1)
    return float("nan") if expected == 0 else float(1 - (together * distance).sum() / expected)


def image_agreement(table: pd.DataFrame) -> float:
    """Krippendorff's alpha of the images about the order of the methods, from (image x method) values."""
    return krippendorff_alpha(table.rank(axis=1).to_numpy(dtype=np.float64))


def ranking_stability(
    table: pd.DataFrame, sizes: Sequence[int] | None = None, *, trials: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How many images a ranking needs: Kendall's tau between the rankings of two disjoint random samples of n images.

    table: (image x method) values. sizes: 2, 4, 8 ... and half the images unless given; SpecError for a size beyond
    half, and for fewer than two methods with a value. Methods are ordered by their mean over the sample. Columns: n, tau
    (mean over trials, NaN where all methods tie in each), low, high (its 5th and 95th percentile), same_best (share of
    trials in which both samples have the same best method).
    """
    whole = _complete(table)
    if len(whole.columns) < 2:
        raise SpecError(f"a ranking needs two methods; of {len(table.columns)}, {len(whole.columns)} have a value")
    half, values = len(whole) // 2, whole.to_numpy(dtype=np.float64)
    chosen = sorted({2**k for k in range(1, 20) if 2**k <= half} | {half}) if sizes is None else list(sizes)
    if half < 1 or any(not 1 <= n <= half for n in chosen):
        raise SpecError(f"{len(whole)} images have a value of every method; two samples of {chosen} cannot be drawn")
    rng, rows = np.random.default_rng(seed), []
    for n in chosen:
        taus, best = [], []
        for _ in range(trials):
            drawn = rng.permutation(len(values))[: 2 * n]
            one, other = values[drawn[:n]].mean(axis=0), values[drawn[n:]].mean(axis=0)
            taus.append(float(stats.kendalltau(one, other).statistic))
            best.append(bool(one.argmax() == other.argmax()))
        known = np.array([tau for tau in taus if not np.isnan(tau)] or [np.nan])
        low, high = np.percentile(known, [5, 95])
        rows.append({"n": n, "tau": float(known.mean()), "low": low, "high": high, "same_best": float(np.mean(best))})
    return pd.DataFrame(rows)


def images_needed(curve: pd.DataFrame, tau: float = 0.8) -> int | None:
    """The fewest images of a stability curve from which on two samples agree to at least `tau`; None if none do."""
    enough = curve.sort_values("n")["tau"].to_numpy() >= tau
    if not len(enough) or not enough[-1]:
        return None
    short = np.flatnonzero(~enough)
    return int(curve.sort_values("n")["n"].iloc[0 if not len(short) else short[-1] + 1])
