"""The one check that what must not change a model's outputs does not: recording, other backward rules, another layout."""

import math

from torch import Tensor

from attncompare.errors import AttnCompareError, CaptureError

TOLERANCE = 1e-5
"""What sums of float32 in another order may differ by, as a share of the scale."""


def check_same_outputs(
    plain: Tensor, changed: Tensor, what: str, so: str = "", *, scale: float | None = None, rounding: float = 0.0,
    error: type[AttnCompareError] = CaptureError,
) -> float:  # fmt: skip
    """The largest difference between outputs that should be equal; `error` where it is more than rounding.

    plain, changed: one shape. what: what makes the difference, the beginning of the message. so: the consequence, its end.
    scale: of the outputs, else the largest of `plain`, at least 1. rounding: a difference already known to be rounding.

    >>> import torch
    >>> check_same_outputs(torch.tensor([8.0]), torch.tensor([9.0]), "the test changes its output", "; stop")
    Traceback (most recent call last):
    ...
    attncompare.errors.CaptureError: the test changes its output by 1, more than 8e-05; stop
    """
    scale = max(1.0, float(plain.abs().max())) if scale is None else scale
    difference, allowed = float((plain - changed).detach().abs().max()), max(TOLERANCE * scale, rounding)
    if not difference <= allowed < math.inf:  # what is not a number is never the same
        raise error(f"{what} by {difference:.2g}, more than {allowed:.2g}{so}")
    return difference
