"""How far `rise-fast` is from `rise`: `python benchmarks/rise_fast.py`.

Deletion and insertion of every method on the same real photos and models under both protocols. Writes
benchmarks/results/rise_fast.csv: per measure the number of curves, the absolute differences of the areas (mean, 95th
percentile, largest), and of all pairs of methods on one image the share whose order changes, also among those pairs
that differ by more than 0.01 under `rise`. The run under runs/ resumes.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from results_table import write_table

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec

METHODS = ("saliency", "input_x_gradient", "grad_cam", "layer_cam", "random_map", "edge_map")
METRICS = ("deletion", "insertion")
CLEAR = 0.01
"""A pair of methods whose areas differ by more is called apart."""


def areas(model: str, protocol: str, limit: int) -> pd.Series:
    """(model, image, measure, method) -> area."""
    spec = BenchmarkSpec(
        models=(model,), methods=METHODS, metrics=METRICS, protocol=protocol, data="photos", limit=limit, timing=False
    )
    found = run_benchmark(spec, Path("runs") / "rise_fast" / protocol).records()
    found = found[found.measure.isin(METRICS) & (found.status == "ok") & (found.model == model)]
    return found.set_index(["model", "image", "measure", "method"]).value


def order_changes(both: pd.DataFrame, least: float = 0.0) -> tuple[int, int]:
    """(changed, pairs) over all pairs of methods on one image that differ by more than `least` under rise."""
    changed = pairs = 0
    for _, group in both.groupby(["model", "image"]):
        for one, other in combinations(range(len(group)), 2):
            before, after = (group[p].iloc[one] - group[p].iloc[other] for p in ("rise", "rise-fast"))
            if abs(before) > least:
                pairs, changed = pairs + 1, changed + (before * after <= 0)
    return changed, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["offline/efficientnet_lite0"])
    parser.add_argument("--limit", type=int, default=20, help="photos")
    given = parser.parse_args()
    rows = []
    for model in given.models:
        frame = pd.concat({p: areas(model, p, given.limit) for p in ("rise", "rise-fast")}, axis=1)
        assert not frame.isna().any().any(), "a curve is missing under one protocol"
        for measure, both in frame.groupby("measure"):
            gap = (both["rise"] - both["rise-fast"]).abs().to_numpy(dtype=np.float64)
            changed, pairs = order_changes(both)
            clearly, apart = order_changes(both, CLEAR)
            rows.append({
                "model": model, "measure": measure, "photos": both.index.get_level_values("image").nunique(),
                "curves": len(both), "mean_difference": gap.mean(), "p95_difference": np.quantile(gap, 0.95),
                "largest_difference": gap.max(), "pairs": pairs, "order_changes": changed, "pairs_apart": apart,
                "order_changes_apart": clearly,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    write_table(table, "rise_fast", decimals=5)


if __name__ == "__main__":
    main()
