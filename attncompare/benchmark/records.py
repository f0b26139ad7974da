"""One value of a benchmark, and the key that says what it depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from attncompare.errors import Failure, UnsupportedMethodError

SCHEMA_VERSION = 1
Status = Literal["ok", "unsupported", "failed"]
Variant = Literal["fp32", "bf16", "compile"]
"""What models are timed as."""
Owner = tuple[str, str, str, int, str, str]
"""What a record is of: its fields from model to protocol."""
Dtype = Literal["float32", "bf16"]
Backend = Literal["torch", "openvino"]
"""What altered images are scored with."""

TIMING_MEASURES = (
    "latency_median",
    "latency_iqr",
    "latency_p10",
    "latency_p90",
    "latency_ratio",
    "latency_ratio_iqr",
    "latency_n",
    "passes_forward",
    "passes_backward",
    "peak_bytes",
)
"""Seconds, but latency_ratio (to the plain forward of the same batch), passes (per image) and bytes beyond those in use
before. Their protocol is the variant that was timed: fp32, bf16 or compile. Some timings have more: latency_device_median
on CUDA, logit_deviation (from fp32) of the other variants."""


REPORTED_MEASURES = ("convergence_delta",)
"""What methods report of each map: by how much its sum misses the change of the score that it stands for."""


@dataclass(frozen=True)
class Record:
    """One row: a value or the reason why there is none, never both.

    image: the sample's name, "" for measures of a method as a whole. target: the explained output, -1 if not resolved.
    curve: the score at x = k/n for deletion and insertion. key: the cell it was computed in. detail: reason or note.
    kind: a word for the reason, "" where there is a value. retry: whether a later run tries again.
    """

    model: str
    method: str
    image: str
    target: int
    measure: str
    protocol: str
    value: float | None
    status: Status
    detail: str
    key: str
    curve: list[float] | None = None
    degenerate: bool = False
    kind: str = ""
    retry: bool = False

    @classmethod
    def failed(
        cls, owner: Owner, failure: Failure, key: str, curve: list[float] | None = None, degenerate: bool = False
    ) -> "Record":
        """A row with a reason in place of its value."""
        status: Status = "unsupported" if failure.kind == UnsupportedMethodError.kind else "failed"
        more = (failure.reason, key, curve, degenerate, failure.kind, failure.retry)
        return cls(*owner, None, status, *more)


def cell_key(content: Mapping[str, object]) -> str:
    """sha256 of the canonical JSON of everything that decides a cell's values, and the schema version.

    >>> cell_key({"a": 1, "b": 2}) == cell_key({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"schema": SCHEMA_VERSION, **content}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
