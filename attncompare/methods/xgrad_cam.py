"""XGrad-CAM."""

import torch
from torch import Tensor

from attncompare.errors import UnsupportedMethodError
from attncompare.methods._base import method

CANCELED = 1e-2  # |sum| below this share of the sum of absolute values multiplies rounding errors by more than 100


@method(reference="Fu et al., arXiv:2008.02312, equations 1 and 8")
def xgrad_cam(features: Tensor, feature_gradients: Tensor) -> Tensor:
    """Channel sum of the features, each channel weighted by the mean of its gradients over its own activation.

    A channel that is silent everywhere weighs nothing. Behind a ReLU the map sums to that of hires_cam. Where positive
    and negative values of a channel cancel (LayerNorm) its weight is rounding, and UnsupportedMethodError is raised.
    """
    total = features.sum(dim=(2, 3), keepdim=True)
    if bool((total.abs() < CANCELED * features.abs().sum(dim=(2, 3), keepdim=True)).any()):
        raise UnsupportedMethodError(
            "xgrad_cam is defined for layers behind a ReLU; channels of this one cancel to zero: name another layer"
        )
    weighted = (features * feature_gradients).sum(dim=(2, 3), keepdim=True)
    weights = torch.where(total == 0, 0, weighted / torch.where(total == 0, 1, total))
    return (weights * features).sum(dim=1)
