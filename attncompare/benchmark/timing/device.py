"""Clock and memory meter of a device, as one small object: the timing pass asks it, tests give a fake one."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CHILD_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Environment under which glibc gives freed tensors back at once, so that resident memory is what is alive. Without it a
method's peak hides in what an earlier one freed. It costs page faults, so nothing is timed under it."""

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what clear_refs takes to set VmHWM back to VmRSS, see proc_pid_clear_refs(5)


@dataclass(frozen=True)
class Device:
    """now: seconds of a clock that never goes back. synchronize: wait until the device has nothing left to do.

    start_peak: forget the highest memory use and return the bytes in use. peak: the highest since. Both None where the
    system does not tell. mark, between: the device's own clock, a mark in its queue and the seconds between two marks
    once it is synchronized; None where the device has no clock of its own.
    """

    now: Callable[[], float]
    synchronize: Callable[[], None]
    start_peak: Callable[[], int] | None = None
    peak: Callable[[], int] | None = None
    mark: Callable[[], Any] | None = None
    between: Callable[[Any, Any], float] | None = None


def open_device(device: torch.device) -> Device:
    """The clock and the meter of the CPU, of CUDA or of MPS."""
    if device.type == "cuda":
        return _cuda(device)
    return _mps() if device.type == "mps" else _cpu()


def peak_of(job: Callable[[], object], device: Device) -> int | None:
    """Bytes that a job takes at most, beyond those in use before it; None where the system does not tell."""
    if device.start_peak is None or device.peak is None:
        return None
    device.synchronize()
    before = device.start_peak()
    job()
    device.synchronize()
    return max(0, device.peak() - before)


def _resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _start_resident_peak() -> int:
    gc.collect()
    CLEAR_REFS.write_text(RESET_PEAK)
    return _resident("VmRSS")


def _cpu() -> Device:
    clock = Device(time.perf_counter, lambda: None)
    try:
        _start_resident_peak()
    except OSError:  # no Linux, or a container that forbids it: the clock works, the meter does not
        return clock
    return Device(clock.now, clock.synchronize, _start_resident_peak, lambda: _resident("VmHWM"))


def _cuda(device: torch.device) -> Device:
    """Everything names the device: what torch does without a name is of the current one, be the model on another."""

    def start_peak() -> int:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event

    def between(first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        return float(first.elapsed_time(last)) / 1e3

    return Device(
        time.perf_counter,
        lambda: torch.cuda.synchronize(device),
        start_peak,
        lambda: torch.cuda.max_memory_allocated(device),
        mark,
        between,
    )


def _mps() -> Device:
    def start_peak() -> int:
        gc.collect()
        torch.mps.empty_cache()  # the driver keeps what was freed since, so its total afterward is the peak
        return torch.mps.driver_allocated_memory()

    return Device(time.perf_counter, torch.mps.synchronize, start_peak, torch.mps.driver_allocated_memory)
