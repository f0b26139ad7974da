"""HiResCAM."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Draelos & Carin, arXiv:2011.08891")
def hires_cam(features: Tensor, feature_gradients: Tensor) -> Tensor:
    """Channel sum of the features, each weighted by its own gradient."""
    return (features * feature_gradients).sum(dim=1)
