"""Interleaved rounds on the CPU clock: every job of a case once per round, its ratio taken to a job of that round."""

import os

# Waiting threads sleep instead of spinning: CPU time is then work done, also on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

LEAST_SECONDS = 0.1  # a sample repeats its job until it lasts that long


@dataclass
class Job:
    """Something to time, and what its time is divided by.

    reference: the name of another job, None for a reference itself. target: the largest ratio that the issue allows.
    most: fewer rounds than the others, for peers that take minutes.
    """

    name: str
    run: Callable[[], object]
    reference: str | None = None
    target: float | None = None
    most: int | None = None
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Run for at least LEAST_SECONDS and keep the CPU and wall seconds of one run."""
        wall, cpu, count = time.perf_counter(), time.process_time(), 0
        while count == 0 or time.perf_counter() - wall < LEAST_SECONDS:
            self.run()
            count += 1
        self.cpu.append((time.process_time() - cpu) / count)
        self.wall.append((time.perf_counter() - wall) / count)


def measure(jobs: Sequence[Job], rounds: int) -> None:
    """Warm up every job once (not those of a single round), then sample them in rounds A B C A B C."""
    for job in jobs:
        if job.most != 1:
            job.run()
    for index in range(rounds):
        for job in jobs:
            if job.most is None or index < job.most:
                job.sample()


def row_of(job: Job, jobs: Sequence[Job]) -> dict[str, object]:
    """The ratios of a job to its reference, round by round, as one row of the result."""
    by_name = {other.name: other for other in jobs}
    reference = by_name[str(job.reference)]
    ratios = [mine / its for mine, its in zip(job.cpu, reference.cpu, strict=False)]
    walls = [mine / its for mine, its in zip(job.wall, reference.wall, strict=False)]
    met = "" if job.target is None else "yes" if median(ratios) <= job.target else "no"
    return {
        "implementation": job.name,
        "ratio_median": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "n": len(ratios),
        "wall_ratio_median": median(walls),
        "reference": reference.name,
        "reference_ms": 1000 * median(reference.cpu),
        "target": job.target,
        "met": met,
    }
