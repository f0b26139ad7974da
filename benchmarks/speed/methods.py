"""Time of every method as a ratio to bare passes of the same images, beside peers in the same process.

    OMP_NUM_THREADS=2 python benchmarks/speed/methods.py --only 'grad_cam/*' --rounds 7

Writes benchmarks/results/speed_methods.csv: CPU time (wall time beside it), 2 threads, interleaved rounds, the ratio taken
round by round. A cell (case/model/batch) that the file holds is skipped unless --again is given, so it runs in pieces.
"""

import argparse
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

import pandas as pd
import rounds
import torch
from cases import CASES, PLAIN, Bench, applies

import attncompare as ac

MODELS = (
    "torchvision/resnet18@random",
    "torchvision/resnet50@random",
    "timm/vit_tiny_patch16_224@random",
    "timm/vit_base_patch16_224@random",
)
BATCHES = (1, 8)
THREADS = 2
KEY = ["case", "model", "batch", "matmul"]
RESULT = Path(__file__).parents[1] / "results" / "speed_methods.csv"


def time_case(case: str, model: ac.models.adapter.ModelAdapter, batch: int, count: int) -> list[dict[str, object]]:
    """The rows of one case on one model and batch."""
    images = torch.rand(batch, 3, *model.size, generator=torch.Generator().manual_seed(0))
    bench = Bench(model, images, torch.arange(batch))
    bench.jobs.append(rounds.Job(PLAIN, bench.plain))
    CASES[case](bench)
    rounds.measure(bench.jobs, count)
    same = {"case": case, "model": model.name, "batch": batch, "matmul": torch.get_float32_matmul_precision()}
    plain = {"plain_ms": 1000 * median(bench.jobs[0].cpu)}
    return [{**same, **rounds.row_of(job, bench.jobs), **plain} for job in bench.jobs if job.reference]


def cells(pattern: str) -> list[tuple[str, str, int]]:
    """Every (case, model, batch) whose case/model/batch fits the pattern, model by model."""
    every = [(case, model, batch) for model in MODELS for batch in BATCHES for case in CASES]
    return [cell for cell in every if fnmatch("/".join(map(str, cell)), pattern)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="*", help="shell pattern of case/model/batch, such as 'grad_cam/*resnet18*/1'"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--matmul", choices=("highest", "medium"), default="highest", help="torch's float32 precision")
    parser.add_argument("--again", action="store_true", help="measure cells that the file holds already")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision(options.matmul)
    found = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=KEY)
    models: dict[str, ac.models.adapter.ModelAdapter] = {}
    for case, name, batch in cells(options.only):
        key = (case, name, batch, options.matmul)
        held = (found[KEY] == key).all(axis=1)
        if held.any() and not options.again:
            continue
        model = models.setdefault(name, models.get(name) or ac.load_model(name))
        if not applies(case, model, batch):
            continue
        rows = pd.DataFrame(time_case(case, model, batch, options.rounds))
        found = pd.concat([found[~held], rows]).sort_values([*KEY], kind="stable") if len(found) else rows
        options.out.parent.mkdir(exist_ok=True)
        found.to_csv(options.out, index=False, float_format="%.4g", lineterminator="\n")
        shown = rows[["implementation", "ratio_median", "ratio_min", "ratio_max", "target", "met"]]
        print(
            f"{case} {name} {batch}: plain {rows.plain_ms[0]:.0f} ms\n{shown.round(3).to_string(index=False)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
