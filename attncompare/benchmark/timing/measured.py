"""What was measured of a method, as records."""

from torch import Tensor

from attncompare.benchmark.plan import Cell
from attncompare.benchmark.records import TIMING_MEASURES, Record, Variant
from attncompare.benchmark.timing.isolated import Outcome
from attncompare.benchmark.timing.latency import UNSTABLE, Timing
from attncompare.benchmark.timing.process import PLAIN, Measured
from attncompare.errors import Failure

SAME_MAP = 1e-3
"""Two maps are the same when no value differs by more than this share of the largest: rounding in another kernel or in
another order costs 1e-7 to 1e-4 of it."""


def without_timing(model: str, cell: Cell, variant: Variant, failure: Failure) -> list[Record]:
    """The same reason for every measure of a timing."""
    name = cell.method.name
    return [Record.failed((model, name, "", -1, one, variant), failure, cell.key) for one in TIMING_MEASURES]


def as_timing_records(model: str, cell: Cell, variant: Variant, found: Outcome, scored: Tensor) -> list[Record]:
    """The records of one method. scored: (B,h,w) or (B,C) the maps that the scoring pass makes of the same images."""
    one = found.measured[cell.method.name]
    fault = changed_map(one, variant, scored)
    failure = one.failure or (Failure("changed", fault) if fault else None)
    if failure:
        return without_timing(model, cell, variant, failure)
    plain = found.measured[PLAIN].timing
    assert one.timing and plain  # it is timed whenever a method is
    values = latencies(one.timing, plain)
    spread = f"unstable: the IQR is {one.timing.iqr / one.timing.median:.0%} of the median, more than {UNSTABLE:.0%}"
    note = spread if one.timing.unstable else ""
    rows = [_row(model, cell, variant, measure, value, note) for measure, value in values.items()]
    rows += [
        _row(model, cell, variant, measure, value)
        for measure, value in zip(("passes_forward", "passes_backward"), one.passes, strict=True)
    ]
    if variant != "fp32" and found.deviation is not None:
        rows.append(_row(model, cell, variant, "logit_deviation", found.deviation))
    if one.no_peak:
        peak = (model, cell.method.name, "", -1, "peak_bytes", variant)
        return [*rows, Record.failed(peak, one.no_peak, cell.key)]
    assert one.peak is not None
    return [*rows, _row(model, cell, variant, "peak_bytes", float(one.peak))]


def latencies(timing: Timing, plain: Timing) -> dict[str, float]:
    """The measures of the samples of a method, beside those of the plain forward."""
    ratio, ratio_iqr = timing.ratio_to(plain)
    found = {
        "latency_median": timing.median,
        "latency_iqr": timing.iqr,
        "latency_p10": timing.quantile(0.1),
        "latency_p90": timing.quantile(0.9),
        "latency_ratio": ratio,
        "latency_ratio_iqr": ratio_iqr,
        "latency_n": float(len(timing.seconds)),
    }
    own = {"latency_device_median": Timing(timing.device_seconds).median} if timing.device_seconds else {}
    return found | own


def changed_map(one: Measured, variant: Variant, scored: Tensor) -> str:
    """Why the map made while timed is not the one that is scored, or "".

    bf16 rounds maps, so there the last run is compared with the first.
    """
    expected = one.first if variant == "bf16" else scored
    if one.last is None or expected is None:
        return "no map was made while it was timed"
    if one.last.shape != expected.shape:
        return f"the map made while timed is {tuple(one.last.shape)}, the one that is scored {tuple(expected.shape)}"
    difference, largest = float((one.last - expected).abs().max()), float(expected.abs().max())
    if difference <= SAME_MAP * largest:
        return ""
    by = f"by {difference:.2g}, its largest value is {largest:.2g}"
    return f"the map made while timed differs from the one that is scored {by}"


def _row(model: str, cell: Cell, variant: Variant, measure: str, value: float, note: str = "") -> Record:
    return Record(model, cell.method.name, "", -1, measure, variant, value, "ok", note, cell.key)
