"""Latency: warm-up until stable, then interleaved rounds with the device synchronized around every run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from attncompare.benchmark.timing.device import Device

UNSTABLE = 0.10
"""A spread beyond this share of the median is too much: of the IQR in the end, of the window in the warm-up."""

WINDOW, MOST_WARM_UPS, MOST_RUNS = 3, 10, 200

Job = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Samples of one job in seconds, round by round: wall time, and the device's own clock where it has one."""

    seconds: tuple[float, ...]
    device_seconds: tuple[float, ...] = ()

    def quantile(self, share: float) -> float:
        """A quantile of the wall times."""
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        """The middle sample."""
        return self.quantile(0.5)

    @property
    def iqr(self) -> float:
        """Interquartile range."""
        return self.quantile(0.75) - self.quantile(0.25)

    @property
    def unstable(self) -> bool:
        """Whether the IQR exceeds 10 % of the median."""
        return self.iqr > UNSTABLE * self.median

    def ratio_to(self, reference: "Timing") -> tuple[float, float]:
        """The medians' ratio over the rounds that both ran in, and the IQR of the ratios round by round.

        >>> Timing((2.0, 4.0, 6.0)).ratio_to(Timing((1.0, 2.0, 3.0, 9.0)))
        (2.0, 0.0)
        """
        rounds = min(len(self.seconds), len(reference.seconds))
        mine, other = np.array(self.seconds[:rounds]), np.array(reference.seconds[:rounds])
        low, high = np.quantile(mine / other, (0.25, 0.75))
        return float(np.median(mine) / np.median(other)), float(high - low)


def _run(job: Job, device: Device) -> tuple[float, float | None]:
    """Wall time of one run, and the time by the device's own clock."""
    device.synchronize()
    start = device.now()
    first = device.mark() if device.mark else None
    job()
    last = device.mark() if device.mark else None
    device.synchronize()
    return device.now() - start, device.between(first, last) if device.between else None


def warm_up(job: Job, device: Device, *, seconds: float, tick: Callable[[], None] = lambda: None) -> int:
    """Run a job until it is stable and return how often.

    Stable: of the last 3 runs, the slowest is no more than 10 % of their median behind the fastest. It ends at the latest
    after 10 runs, or with the run after which all of them together took `seconds`.
    """
    taken: list[float] = []
    while len(taken) < MOST_WARM_UPS and (not taken or sum(taken) < seconds):
        tick()
        taken.append(_run(job, device)[0])
        window = taken[-WINDOW:]
        if len(window) == WINDOW and max(window) - min(window) <= UNSTABLE * float(np.median(window)):
            break
    return len(taken)


def time_interleaved(
    jobs: Mapping[str, Job],
    device: Device,
    *,
    reference: str | None = None,
    repeats: int = 10,
    seconds: float = 1.0,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Warm up, then time jobs in rounds A B C A B C, so that a slow spell of the machine hits all alike.

    Every job runs at least `repeats` times and `seconds` in all, but at most 200 times (or `repeats`, if that is more).
    reference: a job that runs in every round, so that all others have a partner in it. tick: told the name of a job before
    every run.
    """
    for name, job in jobs.items():
        warm_up(job, device, seconds=seconds, tick=lambda name=name: tick(name))  # type: ignore[misc]
    samples: dict[str, list[tuple[float, float | None]]] = {name: [] for name in jobs}

    def unfinished(name: str) -> bool:
        taken = samples[name]
        return len(taken) < repeats or (sum(wall for wall, _ in taken) < seconds and len(taken) < MOST_RUNS)

    while running := {name for name in jobs if unfinished(name)}:
        for name, job in jobs.items():
            if name in running or name == reference:
                tick(name)
                samples[name].append(_run(job, device))
    return {name: _timing(taken) for name, taken in samples.items()}


def _timing(taken: list[tuple[float, float | None]]) -> Timing:
    return Timing(tuple(wall for wall, _ in taken), tuple(own for _, own in taken if own is not None))
