"""Control: noise."""

import hashlib

import torch
from torch import Tensor

from attncompare.maps import resize_map
from attncompare.methods._base import method


@method(
    reference="control",
    class_sensitive=False,
    control=True,
    meaning={"grid": "cells a side of the noise before it is enlarged", "seed": "changes the noise"},
    limits={"grid": (1, 1024), "seed": (0, 2**63)},
)
def random_map(images: Tensor, *, grid: int = 8, seed: int = 0) -> Tensor:
    """Smooth noise, the same for the same image and seed: what a map that knows nothing scores.

    The noise is drawn on a coarse grid, like the feature maps it is compared with: noise on single pixels would destroy
    an image faster than any region does, and look like a good deletion score.
    """
    maps = []
    for image in images.detach().cpu():
        content = (image * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
        digest = hashlib.sha256(content + str(seed).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        maps.append(torch.rand(grid, grid, generator=generator))
    return resize_map(torch.stack(maps), (images.shape[2], images.shape[3])).to(images.device)
