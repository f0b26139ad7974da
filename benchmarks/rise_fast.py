"""How far fewer steps are from `rise`: `python benchmarks/rise_fast.py`.

Deletion and insertion curves of several methods on real photos under `rise` (224 steps at 224 x 224 pixels). Where the
number of steps n divides 224, the curve of n steps is every (224 / n)-th point of that of 224, so that one run gives all
of them; n = 28 is `rise-fast`. Writes benchmarks/results/rise_fast.csv: per number of steps and measure the number of
curves, the absolute differences of the areas (mean, 95th percentile, largest), and of all pairs of methods on one image
how many change their order, also among those that differ by more than 0.01 under `rise`. The run under runs/ resumes.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from results_table import write_table

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec

METHODS = ("saliency", "input_x_gradient", "grad_cam", "layer_cam", "random_map", "edge_map")
METRICS = ("deletion", "insertion")
STEPS = (14, 28, 32, 56, 112)
CLEAR = 0.01
"""A pair of methods whose areas differ by more is called apart."""


def curves(model: str, limit: int) -> pd.DataFrame:
    """One row per image, measure and method, with its curve of 225 points."""
    spec = BenchmarkSpec(
        models=(model,), methods=METHODS, metrics=METRICS, protocol="rise", data="photos", limit=limit, timing=False
    )
    found = run_benchmark(spec, Path("runs") / "rise_fast").records()
    return found[found.measure.isin(METRICS) & (found.status == "ok") & (found.model == model)]


def area(curve: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """(...,225) -> (...) the area that `steps` steps give."""
    every, rest = divmod(curve.shape[-1] - 1, steps)
    assert rest == 0, f"{steps} steps do not divide {curve.shape[-1] - 1}"
    return np.asarray(np.trapezoid(curve[..., ::every], dx=1 / steps, axis=-1))


def order_changes(images: pd.Series, full: NDArray[np.float64], fewer: NDArray[np.float64], least: float = 0.0):
    """(changed, pairs) over all pairs of methods on one image that differ by more than `least` under rise."""
    changed = pairs = 0
    for chosen in images.groupby(images).indices.values():
        for one, other in combinations(chosen, 2):
            before, after = full[one] - full[other], fewer[one] - fewer[other]
            if abs(before) > least:
                pairs, changed = pairs + 1, changed + (before * after <= 0)
    return changed, pairs


def compared(model: str, measure: str, rows: pd.DataFrame, steps: int) -> dict[str, object]:
    """One line of the table."""
    drawn = np.stack([np.asarray(curve, dtype=np.float64) for curve in rows.curve])
    full, fewer = area(drawn, drawn.shape[1] - 1), area(drawn, steps)
    assert np.allclose(full, rows.value, atol=1e-5), "the stored areas are not those of the stored curves"
    gap = np.abs(full - fewer)
    changed, pairs = order_changes(rows.image, full, fewer)
    clearly, apart = order_changes(rows.image, full, fewer, CLEAR)
    return {
        "model": model, "measure": measure, "steps": steps, "photos": rows.image.nunique(), "curves": len(rows),
        "mean_difference": gap.mean(), "p95_difference": np.quantile(gap, 0.95), "largest_difference": gap.max(),
        "pairs": pairs, "order_changes": changed, "pairs_apart": apart, "order_changes_apart": clearly,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["offline/efficientnet_lite0"])
    parser.add_argument("--limit", type=int, default=20, help="photos")
    given = parser.parse_args()
    found = [
        compared(model, str(measure), rows, steps)
        for model in given.models
        for measure, rows in curves(model, given.limit).groupby("measure")
        for steps in STEPS
    ]
    write_table(pd.DataFrame(found), "rise_fast", decimals=5)


if __name__ == "__main__":
    main()
