"""Insertion."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import area_under_curve


@metric(better="higher", reference="Petsiuk et al., arXiv:1806.07421, section 4.1", bounds=(-1, 1))
def insertion(insertion_curve: Tensor, shares: Tensor) -> Tensor:
    """Area under the score while the most relevant units are put back: high when the map finds the evidence."""
    return area_under_curve(insertion_curve, shares)
