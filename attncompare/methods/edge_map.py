"""Control: edges."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attncompare.methods._base import method


@method(
    reference="control; Adebayo et al., arXiv:1810.03292 (edge detectors resemble saliency maps)",
    class_sensitive=False,
    control=True,
)
def edge_map(images: Tensor) -> Tensor:
    """Sobel gradient magnitude of the gray image: looks like an explanation and knows nothing of the model."""
    gray = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=images.device)
    across, down = F.conv2d(gray, kernel[None, None]), F.conv2d(gray, kernel.T[None, None])
    return torch.hypot(across, down)[:, 0]
