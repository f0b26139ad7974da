"""Every error a user can meet: each names the thing, what was found and what is allowed."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

LONGEST = 2000  # characters of a message; a value that someone gave may be longer
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What CUDA and MPS, torch's CPU allocator (two ways) and cuBLAS say; they have no class in common."""


def one_line(text: str) -> str:
    r"""Text that can be shown anywhere: what cannot be printed (line breaks, terminal codes, text direction) is escaped.

    >>> one_line("a\nb \x1b[31mé")
    'a\\nb \\x1b[31mé'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 300]} ... {shown[-290:]}"


class AttnCompareError(Exception):
    """Base of all errors raised on purpose; the message is one line that says what to change.

    kind: a word for the cause. retry: whether the same call may go well another time.
    """

    kind: ClassVar[str] = "error"
    retry: ClassVar[bool] = True

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnknownNameError(AttnCompareError):
    """A model, method, metric, protocol or option that does not exist."""

    kind, retry = "unknown_name", False


class UnsupportedModelError(AttnCompareError):
    """A model that cannot be wrapped."""

    kind, retry = "unsupported_model", False


class UnsupportedMethodError(AttnCompareError):
    """A method that asks for something the model cannot supply."""

    kind, retry = "unsupported", False


class CaptureError(AttnCompareError):
    """What was recorded during a pass is not what the model declared."""

    kind, retry = "capture", False


class SpecError(AttnCompareError):
    """A benchmark spec or an option value that is not allowed."""

    kind, retry = "spec", False


class ImageError(AttnCompareError):
    """An image file that cannot be read safely."""

    kind, retry = "image", False


class ResultFormatError(AttnCompareError):
    """A run folder or record file that cannot be read."""

    kind = "format"


class StorageError(AttnCompareError):
    """Results that cannot be written."""

    kind = "storage"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(one in text for one in OUT_OF_MEMORY)
    )


def reason_of(error: BaseException) -> str:
    r"""The first line of what an error says; behind it its type, unless it is one of ours.

    >>> reason_of(ValueError("no\nyes")), reason_of(MemoryError()), reason_of(SpecError("no"))
    ('no (ValueError)', 'no message (MemoryError)', 'no')
    """
    line = next(iter(str(error).strip().splitlines()), "no message")
    return line if isinstance(error, AttnCompareError) else f"{line} ({type(error).__name__})"


@dataclass(frozen=True)
class Failure:
    """Why there is no value. kind: a word for the cause. retry: whether a later run tries again."""

    kind: str
    reason: str
    retry: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """The failure that an error stands for; an error of another library may not recur.

        >>> Failure.of(ValueError("no")), Failure.of(SpecError("no"))
        (Failure(kind='error', reason='no (ValueError)', retry=True), Failure(kind='spec', reason='no', retry=False))
        """
        if isinstance(error, AttnCompareError):
            return cls(error.kind, reason_of(error), error.retry)
        return cls("memory" if is_out_of_memory(error) else "error", reason_of(error), True)


def _plain(name: str) -> str:
    """A name without the differences that people overlook."""
    return name.lower().replace("_", "").replace("-", "")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a wrong name, with the nearest right ones.

    >>> str(unknown_name("method", "gradcam", ["grad_cam", "saliency"]))
    "unknown method 'gradcam'; did you mean grad_cam?"
    """
    names = sorted(known)
    plain = {_plain(known_name): known_name for known_name in names}
    near = [plain[match] for match in get_close_matches(_plain(name), plain, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}")
