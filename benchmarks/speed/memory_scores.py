"""Peak memory of deletion and insertion: `python benchmarks/speed/memory_scores.py`.

Each case in a fresh process: resnet18 at 224 pixels is loaded and warmed up, the maps are made, then the peak RSS while
images are made and scored, less the RSS before (8 images a pass; 5 steps, since memory does not depend on their number).
In turns over rounds; the bare forward of 8 images is measured the same way. Writes benchmarks/results/memory_scores.csv:
median, smallest and largest of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
from memory_cases import ALLOCATOR, RESNET18, peak_of

RESULT = Path(__file__).parents[1] / "results" / "memory_scores.csv"
CASES = ((0, 0), (1, 1), (1, 2), (1, 8), (4, 2), (16, 2))
"""(images, maps of each); no images for the bare forward."""
BATCH = 8


def measure(images: int, maps: int) -> float:
    """MiB over the loaded model."""
    import torch

    import attncompare as ac
    from attncompare.benchmark.evidence import clean_outputs, target_scorer
    from attncompare.capture.target import TargetScore
    from attncompare.metrics._base import Evidence
    from attncompare.metrics.perturbation import perturbation_curves
    from attncompare.metrics.protocols import Protocol

    torch.set_num_threads(2)
    model = ac.load_model(RESNET18)
    model.module.requires_grad_(False)

    def curves(count: int, drawn: dict[str, torch.Tensor]) -> None:
        pictures = torch.rand(count, 3, *model.size)
        target = TargetScore.of(model, clean_outputs(model, pictures), None)
        score = target_scorer(model, target, torch.arange(count))
        few = Protocol("few steps", None, 5, "mean", "blur")
        both = (Evidence.DELETION_CURVE, Evidence.INSERTION_CURVE)
        mean = model.mean
        perturbation_curves(score, pictures, drawn, few, both, mean=mean, batch_size=BATCH)

    def bare() -> None:
        model.forward(torch.rand(BATCH, 3, *model.size))

    with torch.no_grad():
        bare()
        curves(1, {"warm": torch.rand(1, *model.size)})
        drawn = {str(number): torch.rand(images, *model.size) for number in range(maps)}
        return peak_of(lambda: curves(images, drawn) if images else bare())


def in_fresh_process(images: int, maps: int) -> float:
    """The same, measured by a child."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(images), str(maps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR})
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, type=int, help="used by the script itself")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    peaks: dict[tuple[int, int], list[float]] = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            peaks[case].append(in_fresh_process(*case))
    table = pd.DataFrame([
        {
            "images": images, "maps": maps, "rounds": len(found), "peak_mib": statistics.median(found),
            "min_mib": min(found), "max_mib": max(found),
        }
        for (images, maps), found in peaks.items()
    ])  # fmt: skip
    table.to_csv(RESULT, index=False, float_format="%.1f", lineterminator="\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
