"""Latency, measured in a pass of its own: warm-up, then interleaved rounds, device synchronised, threads recorded."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

UNSTABLE = 0.10


@dataclass(frozen=True)
class Clock:
    """A source of seconds and a way to wait for the device; tests give a fake one."""

    now: Callable[[], float]
    synchronise: Callable[[], None]


def device_clock(device: torch.device) -> Clock:
    """Wall time that waits for the device before it is read."""
    waits: dict[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return Clock(time.perf_counter, waits.get(device.type, lambda: None))


@dataclass(frozen=True)
class Timing:
    """Samples of one job in seconds."""

    seconds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """A quantile of the samples."""
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


def time_interleaved(
    jobs: Mapping[str, Callable[[], object]],
    clock: Clock,
    *,
    repeats: int = 10,
    seconds: float = 1.0,
    limit: int = 200,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time jobs in rounds A B C A B C, so that a slow spell of the machine hits all alike.

    Every job runs at least `repeats` times and `seconds` in all (at most `limit` times); one warm-up run is not counted.
    """
    for job in jobs.values():
        job()
        clock.synchronise()
        tick()
    samples: dict[str, list[float]] = {name: [] for name in jobs}

    def unfinished(name: str) -> bool:
        taken = samples[name]
        return len(taken) < repeats or (sum(taken) < seconds and len(taken) < limit)

    while any(unfinished(name) for name in jobs):
        for name, job in jobs.items():
            if unfinished(name):
                clock.synchronise()
                start = clock.now()
                job()
                clock.synchronise()
                samples[name].append(clock.now() - start)
                if len(samples[name]) <= repeats:
                    tick()
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}
