"""Means with confidence intervals, and paired comparisons of methods on the same images. SciPy does the statistics."""

from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2_000


def mean_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % confidence interval of the mean (BCa; percentile where BCa is undefined, as for constant values)."""
    if len(values) < 2 or np.ptp(values) <= 1e-13 * np.abs(values).max():  # equal but for rounding
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    if not np.isfinite(low) or not np.isfinite(high):
        found = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        )
        low, high = found.confidence_interval
    return float(low), float(high)


def mean_band(curves: NDArray[np.float64], seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pointwise bootstrap 95 % band (percentile) of the mean of curves (images, points): low and high, each (points,).

    >>> low, high = mean_band(np.array([[0.0, 1.0], [0.2, 1.0]]))
    >>> bool(0 <= low[0] < high[0] <= 0.2), float(low[1])
    (True, 1.0)
    """
    count = len(curves)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.percentile(drawn @ curves / count, [2.5, 97.5], axis=0)
    return low, high


def summarize(records: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per model, method, measure and protocol: mean, low, high (95 % CI), n, failed, unsupported, detail."""
    rows = []
    for keys, group in records.groupby(["model", "method", "measure", "protocol"], sort=True):
        values = group.loc[group.status == "ok", "value"].to_numpy(dtype=np.float64)
        row = dict(zip(("model", "method", "measure", "protocol"), keys, strict=True))
        row |= {"n": len(values), "failed": int((group.status == "failed").sum())}
        row |= {"unsupported": int((group.status == "unsupported").sum()), "degenerate": int(group.degenerate.sum())}
        reasons = group.loc[group.status != "ok", "detail"]
        row["detail"] = reasons.iloc[0] if len(reasons) else ""
        row["mean"], row["low"], row["high"] = np.nan, np.nan, np.nan
        if len(values):
            row["mean"] = float(values.mean())
            row["low"], row["high"] = mean_interval(values, seed)
        rows.append(row)
    return pd.DataFrame(rows)


def cliffs_delta(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """How often a value of the first sample exceeds one of the second, less how often it falls below, in [-1, 1].

    All pairs of values count, of different images as well (Cliff, Psychological Bulletin 114(3), 1993).

    >>> round(cliffs_delta(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, 0.0])), 4)
    0.6667
    """
    above = stats.mannwhitneyu(first, second, method="asymptotic").statistic
    return float(2 * above / (len(first) * len(second)) - 1)


def paired_p(difference: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences lie around 0; 1 when all of them are 0."""
    return 1.0 if not difference.any() else float(stats.wilcoxon(difference).pvalue)


def alike(values: pd.DataFrame, best: str, level: float = 0.05) -> list[str]:
    """Methods whose (image x method) values do not differ from those of `best` on the images that both have one of.

    `paired_p` of every method against `best`, Holm over these comparisons.

    >>> values = pd.DataFrame({"a": np.arange(9.0), "b": np.arange(9.0) + 1, "c": np.arange(9.0)})
    >>> alike(values, "a")
    ['c']
    """
    pairs = {name: values[[best, name]].dropna().to_numpy(dtype=np.float64) for name in values.columns if name != best}
    p = {name: paired_p(both[:, 0] - both[:, 1]) for name, both in pairs.items() if len(both)}
    corrected = multipletests(list(p.values()), method="holm")[1] if p else []
    return [name for name, value in zip(p, corrected, strict=True) if value >= level]


def compare_pairs(records: pd.DataFrame, measure: str, seed: int = 0) -> pd.DataFrame:
    """All method pairs of each model (and protocol) on the same images.

    Columns: n images that both have a value of, lost images that one of them failed on, degenerate images for which one
    of them gave a constant map (they count); mean difference first - second with its 95 % interval, Cliff's delta,
    Wilcoxon's p, and p_holm: corrected for all pairs of the model.
    """
    rows = []
    of_measure = records[(records.measure == measure) & (records.image != "")]
    for (model, protocol), group in of_measure.groupby(["model", "protocol"], sort=True):
        values = group[group.status == "ok"].pivot(index="image", columns="method", values="value").astype(np.float64)
        constant = group.pivot(index="image", columns="method", values="degenerate")
        owner = {"model": model, "protocol": protocol, "measure": measure}
        pairs = [
            owner | _compare(values[[first, second]], constant[[first, second]], seed)
            for first, second in combinations(sorted(values.columns), 2)
            if values[[first, second]].notna().all(axis=1).any()
        ]
        corrected = multipletests([pair["p"] for pair in pairs], method="holm")[1] if pairs else []
        rows += [pair | {"p_holm": float(p)} for pair, p in zip(pairs, corrected, strict=True)]
    return pd.DataFrame(rows)


def _compare(values: pd.DataFrame, constant: pd.DataFrame, seed: int) -> dict[str, object]:
    """One pair of methods: (image x 2) values, NaN where there is none, and whether the map was constant."""
    both = values.dropna()
    first, second = (both.iloc[:, column].to_numpy(dtype=np.float64) for column in (0, 1))
    low, high = mean_interval(first - second, seed)
    return {
        "first": values.columns[0],
        "second": values.columns[1],
        "n": len(both),
        "lost": int(constant.notna().any(axis=1).sum()) - len(both),
        "degenerate": int(constant.reindex(both.index).fillna(False).astype(bool).any(axis=1).sum()),
        "difference": float((first - second).mean()),
        "low": low,
        "high": high,
        "cliffs_delta": cliffs_delta(first, second),
        "p": paired_p(first - second),
    }
