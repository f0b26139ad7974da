"""A fresh process for every model that is timed: started, watched, and its death explained."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attncompare.benchmark.timing.device import CHILD_ALLOCATOR
from attncompare.benchmark.timing.latency import Timing
from attncompare.benchmark.timing.process import PLAIN, Measured, Request
from attncompare.errors import Failure

COMMAND = (sys.executable, "-W", "ignore", "-m", "attncompare.benchmark.timing.process")
NOT_FOR_MEMORY = "THP_MEM_ALLOC_ENABLE"  # huge pages, which would round every tensor up to 2 MiB


@dataclass
class Outcome:
    """What the processes measured, job by job, and what the variant changes in the logits (None: no process lived)."""

    measured: dict[str, Measured] = field(default_factory=dict)
    deviation: float | None = None


def measure_apart(request: Request, images: Tensor, tick: Callable[[str], None]) -> Outcome:
    """Measure time, and then memory, each in a process of its own on the CPU; in one process on other devices.

    A method whose process dies is measured no more and the others are, in a new process. tick: told what runs.
    """
    if torch.device(request.device).type != "cpu":
        return _until_done(request, images, {}, tick)
    found = _until_done(replace(request, memory=False), images, {}, tick)
    alive = {name: options for name, options in request.jobs.items() if not found.measured[name].failure}
    giving_back = dict(request.tuning) | {"keep_memory": False}
    apart = replace(request, time=False, jobs=alive, tuning=giving_back)
    weighed = _until_done(apart, images, CHILD_ALLOCATOR, tick).measured
    for name in alive:
        found.measured[name].peak = weighed[name].peak
        found.measured[name].no_peak = weighed[name].failure or weighed[name].no_peak
    return found


def _until_done(
    request: Request, images: Tensor, environment: Mapping[str, str], tick: Callable[[str], None]
) -> Outcome:
    """Start processes until every job is measured or has killed its process."""
    found = Outcome()
    left = dict(request.jobs)
    while left:
        with TemporaryDirectory(prefix="attncompare-") as folder:
            one = replace(request, jobs=left)
            running, death = _run_child(Path(folder), one, images, environment, tick)
            if not death:
                done = _read(Path(folder))
                return Outcome(found.measured | done.measured, done.deviation)
        for name in [running] if running in left else list(left):
            found.measured[name] = Measured(failure=death)
            left.pop(name)
    return found


def _run_child(
    folder: Path, request: Request, images: Tensor, environment: Mapping[str, str], tick: Callable[[str], None]
) -> tuple[str, Failure | None]:
    """Run one process to its end: what ran last, and why it died (None when it did not)."""
    (folder / "request.json").write_text(json.dumps(asdict(request)))
    np.save(folder / "images.npy", images.cpu().numpy())
    inherited = {name: value for name, value in os.environ.items() if not (environment and name == NOT_FOR_MEMORY)}
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}  # what this process can import
    running = ""
    with (folder / "stderr.txt").open("w") as stderr:
        child = subprocess.Popen(
            [*COMMAND, str(folder)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**inherited, **paths, **environment},
        )
        try:
            for line in child.stdout or ():
                running = line.rstrip("\n")
                tick(running)
            code = child.wait()
        finally:  # also when this process is interrupted
            child.kill()
            child.wait()
    if not code:
        return running, None
    said = (folder / "stderr.txt").read_text(errors="replace")
    return running, Failure("process", _cause(code, running, said), retry=True)


def _cause(code: int, running: str, stderr: str) -> str:
    """Why a process ended, in one line."""
    during = f"while it ran {running}" if running else "before it ran anything"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ", most often for lack of memory" if name == "SIGKILL" else ""
        return f"the timing process was killed by {name}{hint}, {during}"
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return f"the timing process ended with code {code} {during}: {last}"


def _read(folder: Path) -> Outcome:
    """What a process has left in its folder."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    found = Outcome(deviation=content["deviation"])
    with np.load(folder / "maps.npz") as maps:
        for name, numbers in content["measured"].items():
            timing = numbers.pop("timing")
            failures = {field: Failure(**numbers[field]) for field in ("failure", "no_peak") if numbers[field]}
            one = Measured(**(numbers | failures))
            one.timing = timing and Timing(tuple(timing["seconds"]), tuple(timing["device_seconds"]))
            if name != PLAIN:
                one.passes = tuple(numbers["passes"])
            for run in ("first", "last"):
                if f"{name}/{run}" in maps:
                    setattr(one, run, torch.from_numpy(maps[f"{name}/{run}"]))
            found.measured[name] = one
    return found
