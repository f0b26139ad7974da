"""How far `--dtype bf16` moves areas: `python benchmarks/bf16.py`.

Deletion and insertion areas (`rise-fast`) of several methods, scored in float32 and under `--dtype bf16`; the maps are the
same. Writes benchmarks/results/bf16.csv: per model and measure the number of curves, the absolute differences of the
areas (mean, 95th percentile, largest), and of all pairs of methods on one image how many change their order, also among
those that are more than 0.01 apart in float32. The runs under runs/bf16 resume.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from results_table import write_table
from rise_fast import CLEAR, METHODS, METRICS, order_changes

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec

SAMPLES = (("offline/efficientnet_lite0", "photos", 9), ("demo/vit", "shapes", 20))
"""(model, data, images)."""
KEY = ["measure", "image", "method"]


def areas(model: str, data: str, limit: int) -> pd.DataFrame:
    """One row per measure, image and method: the area in float32 and in bf16."""
    found = []
    for dtype in ("float32", "bf16"):
        spec = BenchmarkSpec(
            models=(model,), methods=METHODS, metrics=METRICS, protocol="rise-fast", data=data, limit=limit, timing=False,
            dtype=dtype,
        )  # fmt: skip
        rows = run_benchmark(spec, Path("runs") / "bf16" / dtype).records()
        rows = rows[rows.measure.isin(METRICS)]
        assert set(rows.status) == {"ok"}, f"{model} in {dtype}: {set(rows.detail)}"
        found.append(rows.set_index(KEY).value.rename(dtype))
    return pd.concat(found, axis=1).reset_index()


def compared(model: str, data: str, measure: str, rows: pd.DataFrame) -> dict[str, object]:
    """One line of the table."""
    exact, rounded = rows.float32.to_numpy(np.float64), rows.bf16.to_numpy(np.float64)
    gap, images = np.abs(exact - rounded), rows.image.reset_index(drop=True)
    changed, pairs = order_changes(images, exact, rounded)
    clearly, apart = order_changes(images, exact, rounded, CLEAR)
    return {
        "model": model, "data": data, "measure": measure, "images": images.nunique(), "curves": len(rows),
        "mean_difference": gap.mean(), "p95_difference": np.quantile(gap, 0.95), "largest_difference": gap.max(),
        "pairs": pairs, "order_changes": changed, "pairs_apart": apart, "order_changes_apart": clearly,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[model for model, _, _ in SAMPLES])
    parser.add_argument("--limit", type=int, help="images of every model")
    given = parser.parse_args()
    found = [
        compared(model, data, str(measure), rows)
        for model, data, limit in SAMPLES
        if model in given.models
        for measure, rows in areas(model, data, given.limit or limit).groupby("measure")
    ]
    write_table(pd.DataFrame(found), "bf16", decimals=5)


if __name__ == "__main__":
    main()
