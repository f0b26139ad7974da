"""Every error a user can meet: each names the thing, what was found and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class AttnCompareError(Exception):
    """Base of all errors raised on purpose; the message is one line that says what to change."""


class UnknownNameError(AttnCompareError):
    """A model, method, metric, protocol or option that does not exist."""


class UnsupportedModelError(AttnCompareError):
    """A model that cannot be wrapped."""


class UnsupportedMethodError(AttnCompareError):
    """A method that asks for something the model cannot supply."""


class CaptureError(AttnCompareError):
    """What was recorded during a pass is not what the model declared."""


class SpecError(AttnCompareError):
    """A benchmark spec or an option value that is not allowed."""


class ImageError(AttnCompareError):
    """An image file that cannot be read safely."""


class ResultFormatError(AttnCompareError):
    """A run folder or record file that cannot be read."""


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
