from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from attncompare.benchmark.timing import Clock, Timing, device_clock, time_interleaved


class Bench:
    """A machine whose time only passes inside jobs; it notes every run and every wait for the device."""

    def __init__(self) -> None:
        self.time = 100.0
        self.runs: list[str] = []
        self.events: list[str] = []
        self.clock = Clock(self._now, lambda: self.events.append("wait"))

    def _now(self) -> float:
        self.events.append("read")
        return self.time

    def job(self, name: str, seconds: Iterable[float]) -> Callable[[], None]:
        """A job that takes these times in turn, the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.runs.append(name)
            self.events.append(name)
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_samples_are_the_seconds_each_run_took():
    bench = Bench()
    jobs = {"a": bench.job("a", [9, 1, 2, 3, 4]), "b": bench.job("b", [9, 0.5, 0.75, 1.0, 1.25])}
    found = time_interleaved(jobs, bench.clock, repeats=4, seconds=0)
    assert found["a"].seconds == (1, 2, 3, 4)
    assert found["b"].seconds == (0.5, 0.75, 1.0, 1.25)
    assert (found["a"].median, found["b"].median) == (2.5, 0.875)


def test_jobs_take_turns():
    bench = Bench()
    jobs = {name: bench.job(name, [0.125]) for name in "abc"}
    time_interleaved(jobs, bench.clock, repeats=5, seconds=0)
    assert "".join(bench.runs) == "abc" + "abc" * 5


def test_the_warm_up_is_not_counted():
    bench = Bench()
    found = time_interleaved({"a": bench.job("a", [1000, 0.5])}, bench.clock, repeats=6, seconds=0)
    assert found["a"].seconds == (0.5,) * 6
    assert len(bench.runs) == 7


def test_a_fast_job_runs_until_it_has_filled_its_seconds():
    bench = Bench()
    found = time_interleaved({"a": bench.job("a", [0.0625])}, bench.clock, repeats=10, seconds=1.0)
    assert len(found["a"].seconds) == 16 and sum(found["a"].seconds) == 1.0


def test_a_slow_job_runs_no_more_than_it_must_beside_a_fast_one():
    bench = Bench()
    jobs = {"slow": bench.job("slow", [2.0]), "fast": bench.job("fast", [0.0625])}
    found = time_interleaved(jobs, bench.clock, repeats=10, seconds=1.0)
    assert (len(found["slow"].seconds), len(found["fast"].seconds)) == (10, 16)
    assert bench.runs[2:22] == ["slow", "fast"] * 10


def test_a_very_fast_job_stops_at_the_limit():
    bench = Bench()
    found = time_interleaved({"a": bench.job("a", [2.0**-10])}, bench.clock, repeats=3, seconds=1.0, limit=50)
    assert len(found["a"].seconds) == 50


def test_the_least_number_of_repeats_holds_beyond_the_limit():
    bench = Bench()
    found = time_interleaved({"a": bench.job("a", [2.0])}, bench.clock, repeats=12, seconds=0, limit=5)
    assert len(found["a"].seconds) == 12


def test_the_device_is_waited_for_before_and_after_each_timed_run():
    bench = Bench()
    time_interleaved({"a": bench.job("a", [1.0]), "b": bench.job("b", [1.0])}, bench.clock, repeats=3, seconds=0)
    timed = bench.events[bench.events.index("read") - 1 :]
    one = ["wait", "read", "{}", "wait", "read"]
    assert timed == [event.format(name) for _ in range(3) for name in "ab" for event in one]
    assert bench.events[:4] == ["a", "wait", "b", "wait"]


def test_no_jobs_take_no_time():
    bench = Bench()
    assert time_interleaved({}, bench.clock) == {}
    assert bench.time == 100.0


def test_quantiles_are_of_the_samples():
    samples = (5.0, 1.0, 4.0, 2.0, 3.0)
    timing = Timing(samples)
    assert (timing.median, timing.iqr) == (3, 2)
    assert timing.quantile(0.1) == pytest.approx(np.quantile(samples, 0.1)) == pytest.approx(1.4)
    assert timing.quantile(0.9) == pytest.approx(4.6)


@pytest.mark.parametrize(
    ("samples", "unstable"),
    [
        ((1.0,) * 10, False),
        ((0.96, 0.98, 1.0, 1.02, 1.04), False),  # IQR 0.04
        ((0.90, 0.95, 1.0, 1.04, 1.10), False),  # IQR 0.09
        ((0.90, 0.94, 1.0, 1.06, 1.10), True),  # IQR 0.12
        ((1.0,) * 9 + (50.0,), False),  # one outlier leaves the quartiles alone
    ],
)
def test_times_that_spread_by_more_than_a_tenth_are_unstable(samples, unstable):
    assert Timing(samples).unstable is unstable


def test_a_noisy_job_is_flagged_beside_a_steady_one():
    bench = Bench()
    jobs = {"steady": bench.job("steady", [1.0]), "noisy": bench.job("noisy", [1.0] + [1.0, 2.0] * 10)}
    found = time_interleaved(jobs, bench.clock, repeats=10, seconds=0)
    assert (found["steady"].unstable, found["noisy"].unstable) == (False, True)


def test_the_clock_of_a_cpu_runs_forward_and_waits_for_nothing():
    clock = device_clock(torch.device("cpu"))
    first = clock.now()
    assert clock.synchronise() is None
    assert clock.now() >= first
