"""Eigen-CAM."""

import torch
from torch import Tensor

from attncompare.methods._base import method
from attncompare.methods.canceling import channel_mean

UNTOLD = "the sign of the first principal direction cannot be told because "


@method(
    reference="Muhammad & Yeasin, arXiv:2008.00299, equations 3 and 4",
    class_sensitive=False,
    meaning={"centered": "subtract each channel's mean first, as pytorch-grad-cam does; the paper does not"},
)
def eigen_cam(features: Tensor, *, centered: bool = False) -> Tensor:
    """Projection of the features at each place onto their first principal direction over the image.

    A singular vector has no sign of its own: the one is taken that agrees with the channel mean of the features. Where
    that mean is rounding (LayerNorm), UnsupportedMethodError is raised.
    """
    mean = channel_mean(features, "eigen_cam", UNTOLD).flatten(1)  # (B,hw)
    places = features.flatten(2).transpose(1, 2)  # (B,hw,C)
    places = places - places.mean(dim=1, keepdim=True) if centered else places
    direction: Tensor = torch.linalg.svd(places, full_matrices=False).Vh[:, 0]
    projected = (places @ direction[:, :, None])[:, :, 0]
    sign = torch.where((projected * mean).sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(projected)
    return (sign * projected).reshape(-1, *features.shape[2:])
