"""Opt-in settings of the process that make scoring cheaper; recorded with every result, and their effect checked.

Nothing here happens by itself: `import attncompare` and every call leave the process as it is until `tune` is called. What
they choose is how the images that they score are forwarded (`layout`), which moves last digits.
"""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.models.same_outputs import check_same_outputs

Layout = Literal["auto", "contiguous", "channels_last"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
ONE_GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Tuning:
    """What is changed; the defaults change nothing of the process.

    keep_memory: glibc keeps freed memory instead of giving it back (mallopt), and torch asks for huge pages if it has not
    allocated anything yet; both save a page fault for every 4 kB of every activation. Values do not change; cannot be
    undone. layout: how altered images lie in memory when they are scored; "auto" leaves it to benchmark.forwarding, which
    takes "channels_last" (NHWC, where convolutions are faster) for convolutional networks on a CPU; "contiguous" is torch's
    own way. threads: torch's threads
    inside an operation, None leaves them.
    """

    keep_memory: bool = False
    layout: Layout = "auto"
    threads: int | None = None

    @property
    def changes_values(self) -> bool:
        """Whether a score may differ in its last digits."""
        return self.layout == "channels_last"


_applied = Tuning()


def tune(wanted: Tuning) -> Tuning:
    """Apply settings to this process and say which of them took effect: memory needs glibc.

    >>> tune(Tuning()).layout
    'auto'
    """
    global _applied
    if wanted.threads is not None:
        if wanted.threads < 1:
            raise SpecError(f"threads must be at least 1, not {wanted.threads}")
        torch.set_num_threads(wanted.threads)
    kept = _applied.keep_memory or (wanted.keep_memory and _keep_memory())
    _applied = replace(wanted, keep_memory=kept)
    return _applied


def applied() -> Tuning:
    """The settings in force."""
    return _applied


def describe() -> dict[str, object]:
    """The settings in force, for a run's manifest."""
    return asdict(_applied)


def _keep_memory() -> bool:
    """Whether glibc took both settings."""
    if platform.libc_ver()[0] != "glibc":
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, ONE_GIGABYTE)) and bool(mallopt(M_TRIM_THRESHOLD, ONE_GIGABYTE))


@contextmanager
def untuned() -> Iterator[None]:
    """Settings that change values are off inside, and images are forwarded as torch does it, in its highest precision."""
    global _applied
    before, precision = _applied, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        _applied = Tuning(before.keep_memory, "contiguous", threads=before.threads)
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        _applied = before


def check_deviation(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    plain: Callable[[Tensor], Tensor] | None = None,
    what: str = "the tuning",
) -> float:
    """The largest difference that the settings make to the scores of a batch (n,3,H,W); SpecError beyond 1e-5.

    score: images -> (n,), in the layout in force, as the scorers of the benchmark are. plain: the same scores by torch,
    where `score` is not torch's own; what: the name of what it is.

    Costs nothing where no setting changes values.
    """
    if plain is None and not _applied.changes_values:
        return 0.0
    with torch.no_grad():
        tuned = score(images)
        with untuned():
            exact = (plain or score)(images)
    off = f"; leave it off (tuning: {describe()})"
    return check_same_outputs(exact, tuned, f"{what} changes scores", off, scale=1.0, error=SpecError)
