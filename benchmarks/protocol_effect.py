"""What a protocol does to the order of models and of methods: `python benchmarks/protocol_effect.py`.

The demo models on the synthetic shapes, under `rise` and `grid14`, raw and normalized areas. Writes
benchmarks/results/protocol_effect.csv: per measure and protocol the mean of every model over methods and images, with its
bootstrap 95 % interval, and how far the order of the methods agrees with that under `rise` (Kendall's tau).
"""

from pathlib import Path

import numpy as np
import pandas as pd
from results_table import write_table

from attncompare.benchmark.rankings import ranking_agreement
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.statistics import mean_interval

MODELS = ("demo/cnn", "demo/se_cnn", "demo/vit")
METHODS = ("saliency", "input_x_gradient", "grad_cam", "layer_cam", "random_map", "center_map", "edge_map")
METRICS = ("deletion", "insertion", "deletion_normalised", "insertion_normalised")


def records(protocol: str, limit: int) -> pd.DataFrame:
    spec = BenchmarkSpec(models=MODELS, methods=METHODS, metrics=METRICS, protocol=protocol, limit=limit, timing=False)
    return run_benchmark(spec, Path("runs") / "protocol_effect" / protocol).records()


def main() -> None:
    found = pd.concat([records(protocol, 16) for protocol in ("rise", "grid14")])
    agreement = ranking_agreement(found)
    rows = []
    for (measure, protocol, model), group in found[found.measure.isin(METRICS)].groupby(
        ["measure", "protocol", "model"]
    ):
        ok = group[group.status == "ok"]
        low, high = mean_interval(ok.groupby("image")["value"].mean().to_numpy(dtype=np.float64))
        pair = agreement[(agreement.model == model) & (agreement["first"] == f"{measure}, grid14")]
        tau = pair[pair["second"] == f"{measure}, rise"].tau
        rows.append({
            "measure": measure, "protocol": protocol, "model": model, "mean": ok["value"].mean(), "low": low, "high": high,
            "values": len(ok), "undefined": int((group.status == "failed").sum()),
            "tau_with_rise": float(tau.iloc[0]) if protocol == "grid14" else 1.0,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    write_table(table, "protocol_effect")


if __name__ == "__main__":
    main()
