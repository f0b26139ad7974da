"""Guided Grad-CAM."""

import torch
from torch import Tensor

from attncompare.maps import resize_map
from attncompare.methods._base import method


@method(reference="Selvaraju et al., arXiv:1610.02391, section 3.2")
def guided_grad_cam(guided_gradients: Tensor, features: Tensor, feature_gradients: Tensor) -> Tensor:
    """Guided backpropagation times Grad-CAM, enlarged bilinearly; then the largest absolute value over the colors."""
    coarse = torch.einsum("bc,bchw->bhw", feature_gradients.mean(dim=(2, 3)), features).relu()
    height, width = guided_gradients.shape[2:]
    return guided_gradients.abs().amax(dim=1) * resize_map(coarse, (height, width))
