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
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    if not np.isfinite(low) or not np.isfinite(high):
        found = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        )
        low, high = found.confidence_interval
    return float(low), float(high)


def summarise(records: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
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


def compare_pairs(records: pd.DataFrame, measure: str, seed: int = 0) -> pd.DataFrame:
    """All method pairs of each model on the same images: mean difference, its 95 % CI, Wilcoxon p, Holm-corrected."""
    rows = []
    chosen = records[(records.measure == measure) & (records.status == "ok")]
    for model, group in chosen.groupby("model", sort=True):
        table = group.pivot_table(index="image", columns="method", values="value")
        pairs = []
        for first, second in combinations(sorted(table.columns), 2):
            both = table[[first, second]].dropna()
            if both.empty:
                continue
            difference = (both[first] - both[second]).to_numpy(dtype=np.float64)
            low, high = mean_interval(difference, seed)
            p = 1.0 if not difference.any() else float(stats.wilcoxon(difference).pvalue)
            pairs.append(
                {
                    "model": model,
                    "measure": measure,
                    "first": first,
                    "second": second,
                    "n": len(both),
                    "difference": float(difference.mean()),
                    "low": low,
                    "high": high,
                    "p": p,
                }
            )
        corrected = multipletests([pair["p"] for pair in pairs], method="holm")[1] if pairs else []
        rows += [pair | {"p_holm": float(p)} for pair, p in zip(pairs, corrected, strict=True)]
    return pd.DataFrame(rows)
