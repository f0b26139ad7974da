"""Paired comparison of the methods in controls.toml with the three controls: `python benchmarks/controls.py`.

Writes benchmarks/results/controls.csv: per model, measure and pair the mean difference on the same images, its bootstrap
95 % interval, and the Wilcoxon p-value with Holm's correction. A second call computes nothing again.
"""

from pathlib import Path

import pandas as pd

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import make_spec
from attncompare.benchmark.statistics import compare_pairs
from attncompare.methods._base import methods
from attncompare.storage.spec import read_toml

HERE = Path(__file__).parent


def main() -> None:
    spec = make_spec(read_toml(HERE / "controls.toml"))
    run = run_benchmark(spec, "runs/controls")
    records = run.records()
    pairs = pd.concat([compare_pairs(records, measure) for measure in spec.metrics])
    control = {name: methods.get(name).control for name in spec.methods}
    flipped = pairs["first"].map(control) & ~pairs["second"].map(control)
    swapped = pairs[flipped].rename(columns={"first": "second", "second": "first", "low": "high", "high": "low"})
    swapped[["difference", "low", "high"]] *= -1
    pairs = pd.concat([pairs[~flipped], swapped])
    pairs = pairs[~pairs["first"].map(control) & pairs["second"].map(control)]
    columns = ["model", "measure", "first", "second", "n", "difference", "low", "high", "p_holm"]
    pairs = pairs[columns].sort_values(["model", "measure", "second"])
    path = HERE / "results" / "controls.csv"
    path.parent.mkdir(exist_ok=True)
    pairs.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")
    print(pairs.to_string(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
