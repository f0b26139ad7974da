"""Symmetric relevance gain."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import area_under_curve


@metric(
    better="higher",
    reference="Bluecher et al., arXiv:2401.06654, section 3: least relevant first minus most relevant first",
    bounds=(-2, 2),
)
def srg(deletion_curve: Tensor, least_first_curve: Tensor, shares: Tensor) -> Tensor:
    """Area between the curves of removing the least and the most relevant units first; 0 for a map that knows nothing.

    How much the baseline itself hurts the model enters both curves and cancels in part.
    """
    return area_under_curve(least_first_curve, shares) - area_under_curve(deletion_curve, shares)
