"""Control: the image center."""

import torch
from torch import Tensor

from attncompare.methods._base import method


@method(
    reference="control",
    class_sensitive=False,
    control=True,
    meaning={"sigma": "width of the Gaussian as a fraction of the image side"},
    limits={"sigma": (0.001, 100)},
)
def center_map(images: Tensor, *, sigma: float = 0.25) -> Tensor:
    """A Gaussian at the image center: photographers put the object there, so it is hard to beat on photos."""
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) + 0.5) / height - 0.5
    columns = (torch.arange(width, device=images.device) + 0.5) / width - 0.5
    bump = torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * sigma**2))
    return bump.expand(len(images), -1, -1).clone()
