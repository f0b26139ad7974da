"""Grad-CAM++."""

import torch
from torch import Tensor

from attncompare.errors import UnsupportedMethodError
from attncompare.methods._base import method


@method(reference="Chattopadhyay et al., arXiv:1710.11063, equations 5, 7 and 19")
def grad_cam_pp(features: Tensor, feature_gradients: Tensor) -> Tensor:
    """ReLU of the channel sum of the features, each channel weighted by its positive gradients, rarer ones more.

    With Y = exp(score) the factors of equation 19 are alpha = 1 / (2 + g sum(A)), where g is the gradient of the score
    at a place and sum(A) the channel's sum. They are defined behind a ReLU: where a negative sum makes the denominator
    cross zero, UnsupportedMethodError is raised. pytorch-grad-cam adds 1e-6 to g^2 (2 + g sum(A)), which decides the
    weights once |g| is below 1e-3; torch-cam has another factor.
    """
    positive = feature_gradients.relu()
    denominator = 2 + positive * features.sum(dim=(2, 3), keepdim=True)
    if bool((denominator <= 0).any()):
        raise UnsupportedMethodError(
            "grad_cam_pp is defined for layers behind a ReLU; channels of this one have negative sums: name another layer"
        )
    weights = (positive / denominator).sum(dim=(2, 3), keepdim=True)
    return torch.sum(weights * features, dim=1).relu()
