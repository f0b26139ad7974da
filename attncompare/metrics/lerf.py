"""Least relevant first."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import area_under_curve


@metric(
    better="higher",
    reference="Chefer et al., arXiv:2012.09838, section 4 (negative perturbation); the score is the protocol's",
    bounds=(-1, 1),
)
def lerf(least_first_curve: Tensor, shares: Tensor) -> Tensor:
    """Area under the score while the least relevant units are removed first: high when what is left carries the class."""
    return area_under_curve(least_first_curve, shares)
