"""Most relevant first."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import area_under_curve


@metric(
    better="lower",
    reference="Chefer et al., arXiv:2012.09838, section 4 (positive perturbation); the score is the protocol's",
    bounds=(-1, 1),
)
def morf(deletion_curve: Tensor, shares: Tensor) -> Tensor:
    """Area under the score while the most relevant units are removed first; the same curve as that of `deletion`."""
    return area_under_curve(deletion_curve, shares)
