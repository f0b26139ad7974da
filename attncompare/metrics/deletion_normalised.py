"""Deletion, comparable between models."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import area_under_curve, rescaled_curve


@metric(
    better="lower",
    reference="(p - p_end) / (p_start - p_end) before the area is taken",
    undefined="the score hardly differs between the clean image and the baseline (less than 0.01), or the protocol "
    "stops before everything is removed",
)
def deletion_normalised(deletion_curve: Tensor, shares: Tensor) -> Tensor:
    """Deletion after the curve is rescaled to run from 1 to 0: a confident model no longer scores worse."""
    return area_under_curve(rescaled_curve(deletion_curve, shares, clean=0, base=-1), shares)
