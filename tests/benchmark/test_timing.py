from collections.abc import Callable, Iterable

import numpy as np
import pytest

from attncompare.benchmark.timing.device import Device
from attncompare.benchmark.timing.latency import Timing, time_interleaved, warm_up


class Bench:
    """A machine whose time only passes inside jobs; it notes every run and every wait for the device.

    Its device has a clock of its own, which runs at a quarter of the speed.
    """

    def __init__(self) -> None:
        self.time = 100.0
        self.runs: list[str] = []
        self.events: list[str] = []
        self.device = Device(self._now, lambda: self.events.append("wait"))

    def with_marks(self) -> Device:
        return Device(self._now, self.device.synchronize, mark=self._mark, between=lambda a, b: (b - a) / 4)

    def _now(self) -> float:
        self.events.append("read")
        return self.time

    def _mark(self) -> float:
        self.events.append("mark")
        return self.time

    def job(self, name: str, seconds: Iterable[float]) -> Callable[[], None]:
        """A job that takes these times in turn, the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.runs.append(name)
            self.events.append(name)
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [
        ([1.0], 3),  # steady from the start: as many as the window holds
        ([9, 4, 2, 1, 1, 1], 6),  # until the last three are alike
        ([9, 1.0, 1.1, 1.05], 4),  # a spread of just a tenth of the median will do
        ([9, 1.0, 1.2, 1.0, 1.2, 1.0, 1.2, 1.0, 1.2, 1.0, 1.2], 10),  # never stable: ten runs
    ],
)
def test_the_warm_up_ends_when_three_runs_are_alike(bench, seconds, runs):
    assert warm_up(bench.job("a", seconds), bench.device, seconds=1e9) == runs == len(bench.runs)


@pytest.mark.parametrize(("limit", "runs"), [(0, 1), (5, 1), (5.5, 2), (7, 3)])
def test_a_slow_job_is_warm_after_the_seconds_given(bench, limit, runs):
    assert warm_up(bench.job("a", [5, 1, 3, 1, 3, 1, 3]), bench.device, seconds=limit) == runs


def test_samples_are_the_seconds_each_run_took(bench):
    jobs = {"a": bench.job("a", [9, 1, 2, 3, 4]), "b": bench.job("b", [9, 0.5, 0.75, 1.0, 1.25])}
    found = time_interleaved(jobs, bench.device, repeats=4, seconds=0)
    assert found["a"].seconds == (1, 2, 3, 4)
    assert found["b"].seconds == (0.5, 0.75, 1.0, 1.25)
    assert (found["a"].median, found["b"].median) == (2.5, 0.875)


def test_jobs_take_turns(bench):
    jobs = {name: bench.job(name, [0.125]) for name in "abc"}
    time_interleaved(jobs, bench.device, repeats=5, seconds=0)
    assert "".join(bench.runs) == "abc" + "abc" * 5


def test_the_warm_up_is_not_counted(bench):
    found = time_interleaved({"a": bench.job("a", [1000, 0.5])}, bench.device, repeats=6, seconds=0)
    assert found["a"].seconds == (0.5,) * 6
    assert len(bench.runs) == 7


def test_a_fast_job_runs_until_it_has_filled_its_seconds(bench):
    found = time_interleaved({"a": bench.job("a", [0.0625])}, bench.device, repeats=10, seconds=1.0)
    assert len(found["a"].seconds) == 16 and sum(found["a"].seconds) == 1.0


def test_a_slow_job_runs_no_more_than_it_must_beside_a_fast_one(bench):
    jobs = {"slow": bench.job("slow", [2.0]), "fast": bench.job("fast", [0.0625])}
    found = time_interleaved(jobs, bench.device, repeats=10, seconds=1.0)
    assert (len(found["slow"].seconds), len(found["fast"].seconds)) == (10, 16)
    assert bench.runs[4:24] == ["slow", "fast"] * 10  # after one warm-up of the slow and three of the fast job


def test_a_very_fast_job_stops_after_two_hundred_runs(bench):
    found = time_interleaved({"a": bench.job("a", [2.0**-10])}, bench.device, repeats=3, seconds=1.0)
    assert len(found["a"].seconds) == 200


def test_the_least_number_of_repeats_holds_beyond_that(bench):
    found = time_interleaved({"a": bench.job("a", [2.0])}, bench.device, repeats=201, seconds=0)
    assert len(found["a"].seconds) == 201


def test_the_reference_runs_in_every_round(bench):
    jobs = {"plain": bench.job("plain", [1.0]), "slow": bench.job("slow", [0.125])}
    found = time_interleaved(jobs, bench.device, reference="plain", repeats=4, seconds=1.0)
    assert (len(found["plain"].seconds), len(found["slow"].seconds)) == (8, 8)


def test_the_device_is_waited_for_before_and_after_each_run(bench):
    time_interleaved({"a": bench.job("a", [1.0]), "b": bench.job("b", [1.0])}, bench.device, repeats=3, seconds=0)
    one = ["wait", "read", "{}", "wait", "read"]
    assert bench.events == [event.format(name) for _ in range(4) for name in "ab" for event in one]


def test_the_devices_own_clock_is_read_beside_the_wall_clock(bench):
    found = time_interleaved({"a": bench.job("a", [9, 1, 2, 3])}, bench.with_marks(), repeats=3, seconds=0)["a"]
    assert (found.seconds, found.device_seconds) == ((1, 2, 3), (0.25, 0.5, 0.75))
    assert bench.events[:7] == ["wait", "read", "mark", "a", "mark", "wait", "read"]
    plain = time_interleaved({"a": bench.job("a", [1.0])}, bench.device, repeats=3, seconds=0)["a"]
    assert plain.device_seconds == ()


def test_every_run_is_announced(bench):
    said: list[str] = []
    jobs = {name: bench.job(name, [0.125]) for name in "ab"}
    time_interleaved(jobs, bench.device, repeats=3, seconds=0.5, tick=said.append)
    assert said == bench.runs


def test_no_jobs_take_no_time(bench):
    assert time_interleaved({}, bench.device) == {}
    assert bench.time == 100.0


def test_quantiles_are_of_the_samples():
    samples = (5.0, 1.0, 4.0, 2.0, 3.0)
    timing = Timing(samples)
    assert (timing.median, timing.iqr) == (3, 2)
    assert timing.quantile(0.1) == pytest.approx(np.quantile(samples, 0.1)) == pytest.approx(1.4)
    assert timing.quantile(0.9) == pytest.approx(4.6)


def test_the_ratio_is_of_medians_over_the_rounds_that_both_ran_in():
    plain = Timing((1.0, 2.0, 3.0, 100.0, 100.0))
    ratio, iqr = Timing((4.0, 4.0, 9.0)).ratio_to(plain)
    assert ratio == 4.0 / 2.0
    assert iqr == pytest.approx(np.quantile([4, 2, 3], 0.75) - np.quantile([4, 2, 3], 0.25))


def test_a_slow_spell_of_the_machine_cancels_in_the_ratio(bench):
    """Rounds of 1, 1, 5 and 5 times the time: the ratio of each is 2."""
    spell = [1.0, 1.0, 1.0, 5.0, 5.0]
    jobs = {"plain": bench.job("plain", spell), "twice": bench.job("twice", [2 * s for s in spell])}
    found = time_interleaved(jobs, bench.device, reference="plain", repeats=4, seconds=0)
    assert found["twice"].ratio_to(found["plain"]) == (2.0, 0.0)


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


def test_a_noisy_job_is_flagged_beside_a_steady_one(bench):
    jobs = {"steady": bench.job("steady", [1.0]), "noisy": bench.job("noisy", [1.0] + [1.0, 2.0] * 10)}
    found = time_interleaved(jobs, bench.device, repeats=10, seconds=0)
    assert (found["steady"].unstable, found["noisy"].unstable) == (False, True)
