"""The child process of the timing pass: `python -m attncompare.benchmark.timing.process FOLDER`.

It loads one model by its name, times every method beside the plain forward, and measures their memory. FOLDER holds
request.json and images.npy; results.json and maps.npz are written there. Before every run the child prints the name of what
runs, so that the parent knows what was running if the child dies.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attncompare.benchmark.records import Variant
from attncompare.benchmark.timing.device import Device, open_device, peak_of
from attncompare.benchmark.timing.latency import Job, Timing, time_interleaved
from attncompare.benchmark.timing.variants import in_variant
from attncompare.capture.target import Target
from attncompare.errors import AttnCompareError, Failure
from attncompare.explain import explain_together
from attncompare.maps import AttributionMap
from attncompare.models.adapter import ModelAdapter
from attncompare.models.load import load_model
from attncompare.state import preserve_state
from attncompare.tuning import Tuning, tune

PLAIN = "(plain forward)"
NO_METER = Failure("unsupported", "this system does not report the peak memory of a process")


@dataclass(frozen=True)
class Request:
    """What the child is to do. jobs: method -> options. target: class indices, or a string such as "embedding".

    weights: the hash of the model that is meant. tuning, matmul: the settings of the parent process, which may have set
    torch's float32 matmul precision by itself. time, memory: what to measure.
    """

    model: str
    weights: str
    device: str
    threads: int
    variant: Variant
    jobs: Mapping[str, Mapping[str, object]]
    target: list[int] | str
    repeats: int
    seconds: float
    tuning: Mapping[str, Any]
    matmul: str
    time: bool = True
    memory: bool = True


@dataclass
class Measured:
    """What was measured of one job; failure: why nothing was, such as an error at the method's first run.

    peak: bytes; no_peak: why there is none. passes: forward and backward, per image. first, last: (B,h,w) or (B,C) the
    maps of the first and of the last run.
    """

    timing: Timing | None = None
    peak: int | None = None
    no_peak: Failure | None = None
    passes: tuple[float, float] = (0.0, 0.0)
    failure: Failure | None = None
    first: Tensor | None = None
    last: Tensor | None = None


def measure(
    model: ModelAdapter, images: Tensor, request: Request, device: Device, say: Callable[[str], None]
) -> tuple[dict[str, Measured], float]:
    """Measure the plain forward and every job of a request; the second value is what the variant changes in the logits.

    say: told the name of a job before each of its runs.
    """
    target: Target = request.target if isinstance(request.target, str) else torch.tensor(request.target)
    shown: dict[str, AttributionMap] = {}

    def logits(one: ModelAdapter) -> Tensor:
        with torch.no_grad(), preserve_state(one.module):
            return one.forward(images)

    before = logits(model)
    model = in_variant(model, request.variant)
    say(PLAIN)
    deviation = float((logits(model) - before).abs().max())

    def plain() -> object:
        with torch.no_grad():
            return model.forward(images)

    jobs: dict[str, Job] = {PLAIN: plain}
    found = {PLAIN: Measured()}
    for name, options in request.jobs.items():

        def job(name: str = name, options: Mapping[str, object] = options) -> None:
            shown[name] = explain_together(model, [(name, options)], images, target)[name]

        found[name] = _first_run(name, job, shown, say)
        if not found[name].failure:
            jobs[name] = job
    if request.time:
        sizes = {"repeats": request.repeats, "seconds": request.seconds}
        for name, timing in time_interleaved(jobs, device, reference=PLAIN, tick=say, **sizes).items():  # type: ignore[arg-type]
            found[name].timing = timing
    for name, run in jobs.items() if request.memory else ():
        say(name)  # its first run has chosen kernels and made workspaces, which stay and are not counted
        found[name].peak = peak_of(run, device)
        found[name].no_peak = None if device.peak else NO_METER
    for name, one in shown.items():
        found[name].last = one.values
    return found, deviation


def _first_run(name: str, job: Job, shown: Mapping[str, AttributionMap], say: Callable[[str], None]) -> Measured:
    """The passes and the map of a method's first run, or the reason why it cannot run."""
    say(name)
    try:
        job()
    except Exception as error:  # every fault of a method becomes a record
        return Measured(failure=Failure.of(error))
    made = shown[name]
    return Measured(passes=(made.passes_forward, made.passes_backward), first=made.values)


def main(folder: Path) -> None:
    """Do what the folder's request asks for; the standard output is for the names of what runs, and for nothing else."""
    names = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    request = Request(**json.loads((folder / "request.json").read_text()))
    tune(Tuning(**request.tuning))
    torch.set_num_threads(request.threads)
    torch.set_float32_matmul_precision(request.matmul)
    model = load_model(request.model, device=request.device)
    if model.weights_hash != request.weights:
        raise AttnCompareError(f"{request.model} has other weights when it is loaded again; it changed during the run")
    images = torch.from_numpy(np.load(folder / "images.npy")).to(model.device)
    found, deviation = measure(model, images, request, open_device(model.device), lambda name: print(name, file=names))
    maps = {
        f"{name}/{run}": values.cpu().numpy()
        for name, one in found.items()
        for run, values in (("first", one.first), ("last", one.last))
        if values is not None
    }
    np.savez(folder / "maps.npz", **maps)  # type: ignore[arg-type]
    numbers = {name: asdict(one) | {"first": None, "last": None} for name, one in found.items()}
    (folder / "results.json").write_text(json.dumps({"deviation": deviation, "measured": numbers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
