"""CAM."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Zhou et al., arXiv:1512.04150, equation 2")
def cam(pooled_features: Tensor, classifier_weights: Tensor) -> Tensor:
    """Channel sum of the features that global average pooling reads, weighted by the target's classifier row."""
    return (pooled_features * classifier_weights[:, :, None, None]).sum(dim=1)
