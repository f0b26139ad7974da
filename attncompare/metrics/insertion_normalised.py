"""Insertion, comparable between models."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import area_under_curve, rescaled_curve


@metric(
    better="higher",
    reference="(p - p_start) / (p_end - p_start) before the area is taken",
    undefined="the score hardly differs between the clean image and the baseline (less than 0.01), or the protocol "
    "stops before everything is inserted",
)
def insertion_normalised(insertion_curve: Tensor, shares: Tensor) -> Tensor:
    """Insertion after the curve is rescaled to run from 0 to 1: a confident model no longer scores better."""
    return area_under_curve(rescaled_curve(insertion_curve, shares, clean=-1, base=0), shares)
