"""What scoring costs beside the forward passes it needs: `python benchmarks/speed_scores.py`.

Two yardsticks in the same process and rounds: L, the same number of images forwarded bare in the same mode and batches; and
R, the loop of RISE's own code written plainly (batch 1, default layout, an argsort and a copy per step). Each row is CPU
time of the process, 2 threads, passive OpenMP, interleaved rounds; median, minimum and maximum. The whole is run in three
processes: as a library call that sets nothing, tuned (attncompare.tuning), and with backend openvino in a process that keeps
its memory. "R / engine" always has the loop of the library process, which is torch's; the third process runs it once, for
its areas. Areas of R and engine must agree to 1e-6, with openvino to 1e-5.

"road" imputes and scores four images, "road peer" one by pytorch-grad-cam (extra `peers`), which makes two passes for each
of nine shares where nine are needed. "gemm" is one float32 product of 1576 x 768 and 768 x 3072, the largest of ViT-B: what
the processor reaches at best, beside which the GFLOP/s of CPU time of the other rows show what is left to gain.

Writes benchmarks/results/speed_scores.csv, where models that are not measured keep their rows; `--models`, `--steps`,
`--rounds` and `--maps` make it smaller or larger.
"""

import os

os.environ.update(OMP_WAIT_POLICY="passive", KMP_BLOCKTIME="0", OMP_NUM_THREADS="2")

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import attncompare as ac
from attncompare.benchmark.evidence import Passes, images_a_pass, in_parts, target_scorer
from attncompare.benchmark.forwarding import fast_forward, suitable_way
from attncompare.benchmark.openvino import openvino_forward
from attncompare.benchmark.records import Backend
from attncompare.capture.target import TargetScore
from attncompare.metrics._base import Evidence
from attncompare.metrics.imputation import SHARES, imputed_scores
from attncompare.metrics.perturbation import area_under_curve, baseline_images, perturbation_curves
from attncompare.metrics.protocols import Protocol
from attncompare.models.adapter import ModelAdapter
from attncompare.tuning import Tuning, applied, tune

MODELS = ("torchvision/resnet18@random", "torchvision/resnet50@random", "timm/vit_tiny_patch16_224@random",
          "timm/vit_base_patch16_224@random", "offline/efficientnet_lite0")  # fmt: skip
BATCH = 8
ROAD_IMAGES = 4
ROWS, INNER, COLUMNS = 1576, 768, 3072
"""The largest product of ViT-B at this batch: 8 x 197 tokens."""
MODES = {"library": "torch", "tuned": "torch", "openvino": "openvino"}
"""Process -> backend."""
AGREEMENT = {"torch": 1e-6, "openvino": 1e-5}
CURVES = (Evidence.DELETION_CURVE, Evidence.INSERTION_CURVE)


def rise_loop(
    forward: Callable[[Tensor], Tensor], image: Tensor, values: Tensor, base: Tensor, blurred: Tensor, steps: int
):
    """(deletion, insertion) areas of one image, as RISE's causal metric computes them: one pass a step."""
    order = np.argsort(-values.flatten().numpy(), kind="stable")
    areas = []
    for start, finish in ((image, base), (blurred, image)):
        current, curve = start.clone(), []
        for step in range(steps + 1):
            curve.append(float(forward(current)[0]))
            last = [round(k * len(order) / steps) for k in (step, step + 1)]
            changed = order[last[0] : last[1]]
            current.reshape(1, 3, -1)[0, :, changed] = finish.reshape(1, 3, -1)[0, :, changed]
        areas.append(float(np.trapezoid(curve, dx=1 / steps)))
    return areas


def road_peer(model: ModelAdapter, image: Tensor, values: Tensor, index: int) -> object:
    """ROAD, most relevant first, as pytorch-grad-cam computes it for one image."""
    from pytorch_grad_cam.metrics.road import ROADMostRelevantFirstAverage
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    metric = ROADMostRelevantFirstAverage([round(100 * share) for share in SHARES])
    return metric(image, values.numpy(), [ClassifierOutputSoftmaxTarget(index)], model.module)


def gigaflops(forward: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """GFLOP of one image's matrix products and convolutions, two a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        forward(image)
    return counter.get_total_flops() / 1e9


def cpu_of(run: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def measure(name: str, steps: int, rounds: int, maps: int, backend: Backend) -> list[dict[str, object]]:
    model = ac.load_model(name)
    model.module.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 14, 14, generator=generator), model.size, mode="bicubic"
    ).clamp(0, 1)
    drawn = {str(k): torch.rand(1, *model.size, generator=generator) for k in range(maps)}
    protocol = Protocol("timed", None, steps, "mean", "blur")
    mean = model.mean
    with torch.no_grad():
        target = TargetScore.of(model, model.forward(image), None)
        index = torch.zeros(1, dtype=torch.int64)
        score = target_scorer(model, target, index, passes=Passes(backend=backend))
        forward = fast_forward(model) if backend == "torch" else openvino_forward(model)
        base, blurred = (baseline_images(image, kind, mean) for kind in ("mean", "blur"))
        count = 3 + maps * 2 * (steps - 1)
        together = images_a_pass(image.device, BATCH)
        full, rest = divmod(count, together)
        batch = image.expand(together, -1, -1, -1).contiguous()
        if backend == "torch" and suitable_way(model) == "channels_last":
            batch = batch.contiguous(memory_format=torch.channels_last)

        def bare() -> None:
            for size in [together] * full + [rest] * bool(rest):
                forward(batch[:size])

        def engine():
            return perturbation_curves(score, image, drawn, protocol, CURVES, mean=mean, batch_size=BATCH)

        def loop():
            one = torch.zeros(1, dtype=torch.int64)
            plain = lambda x: target.probability(model.forward(x), one)  # noqa: E731
            return rise_loop(plain, image, drawn["0"][0], base, blurred, steps)

        pictures, ranked = image.expand(ROAD_IMAGES, -1, -1, -1).contiguous(), drawn["0"].expand(ROAD_IMAGES, -1, -1)

        def road():
            return imputed_scores(
                pictures, ranked, lambda x, w: torch.cat([score(p, 0 * w[: len(p)]) for p in in_parts(x, BATCH)]), 0
            )

        jobs = {"L": bare, "engine": engine, "R": loop, "road": road}
        if find_spec("pytorch_grad_cam") is not None and not applied().keep_memory:
            bare_image = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(model.std)[:, None, None]
            jobs["road peer"] = lambda: road_peer(model, bare_image, drawn["0"], int(target.target[0]))
        factors = torch.rand(ROWS, INNER, generator=generator), torch.rand(INNER, COLUMNS, generator=generator)
        jobs["gemm"] = lambda: factors[0] @ factors[1]
        work = gigaflops(model.forward, image)
        times: dict[str, list[float]] = {key: [] for key in jobs}
        found = {}
        for number in range(rounds + 1):
            for key, job in jobs.items():
                if number and key == "R" and backend != "torch":
                    continue  # the plain loop has no backend
                spent, found[key] = cpu_of(job)
                times[key] += [spent] if number else []  # the first round warms up
    ours = [float(area_under_curve(found["engine"]["0"][curve])) for curve in CURVES]
    worst = max(abs(a - b) for a, b in zip(ours, found["R"], strict=True))
    assert worst <= AGREEMENT[backend], f"{name}: areas of R and engine are {worst:.1e} apart"
    images = {"L": count, "engine": count, "R": 2 * (steps + 1), "road": ROAD_IMAGES * len(SHARES)}
    images |= {"road peer": len(SHARES), "gemm": 1}
    product = 2 * ROWS * INNER * COLUMNS / 1e9
    return [
        {
            "model": name, "job": key, "images": images[key], "rounds": rounds, "area_difference": worst,
            "median_ms": statistics.median(spent) / images[key] * 1e3, "min_ms": min(spent) / images[key] * 1e3,
            "max_ms": max(spent) / images[key] * 1e3,
            "gflop_per_s": (product if key == "gemm" else work) * images[key] / statistics.median(spent),
        }
        for key, spent in times.items() if spent
    ]  # fmt: skip


def one_process(arguments: argparse.Namespace, name: str, mode: str) -> list[dict[str, object]]:
    """One model in a fresh process, which may be tuned as a whole."""
    command = [sys.executable, __file__, "--only", mode, "--models", name, "--steps", str(arguments.steps)]
    command += ["--rounds", str(arguments.rounds), "--maps", str(arguments.maps)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) | {"process": mode} for line in text.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--maps", type=int, default=2)
    parser.add_argument("--only", choices=MODES, help="used by the script itself")
    arguments = parser.parse_args()
    if arguments.only:
        torch.set_num_threads(2)
        if arguments.only != "library":
            tune(Tuning(keep_memory=True))
        for name in arguments.models:
            for row in measure(name, arguments.steps, arguments.rounds, arguments.maps, MODES[arguments.only]):
                print(json.dumps(row), flush=True)
        return
    found = []
    for name in arguments.models:  # model by model, so that what is measured is kept if the rest is cut short
        for mode in MODES:
            found += one_process(arguments, name, mode)
        write(pd.DataFrame(found))


def write(rows: pd.DataFrame) -> None:
    """The rows with their ratios, to the file and to the terminal."""
    medians = rows.pivot_table(index=["model", "process"], columns="job", values="median_ms")
    library = medians["R"].unstack("process")["library"]
    table = pd.DataFrame({
        "engine / L": medians["engine"] / medians["L"],
        "road / L": medians["road"] / medians["L"],
        "road peer / L": medians["road peer"] / medians["L"],
        "R / engine": medians.index.get_level_values("model").map(library) / medians["engine"],
    })  # fmt: skip
    path = Path(__file__).parent / "results" / "speed_scores.csv"
    measured = rows.merge(table.reset_index(), on=["model", "process"])
    if path.exists():
        before = pd.read_csv(path)
        measured = pd.concat([before[~before.model.isin(rows.model)], measured])
    measured.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")
    print(table.round(3).to_string())
    print(f"largest difference of areas between R and engine: {rows.area_difference.max():.1e}", flush=True)


if __name__ == "__main__":
    main()
