"""The controls, which know nothing of the model: (adapter, images, target) -> (B,H,W)."""

import hashlib

import torch
from scipy import ndimage

from references.plain import enlarged


def center_map(adapter, images, target, sigma=0.25):
    height, width = images.shape[2:]
    down = (torch.arange(height, dtype=torch.float64) + 0.5) / height - 0.5
    right = (torch.arange(width, dtype=torch.float64) + 0.5) / width - 0.5
    bump = torch.exp(-(down[:, None] ** 2) / (2 * sigma**2)) * torch.exp(-(right[None] ** 2) / (2 * sigma**2))
    return bump.expand(len(images), -1, -1)


def edge_map(adapter, images, target):
    """SciPy's Sobel filter on the gray image."""
    maps = []
    for gray in images.double().mean(dim=1).numpy():
        down, across = (ndimage.sobel(gray, axis=axis, mode="nearest") for axis in (0, 1))
        maps.append(torch.from_numpy((down**2 + across**2) ** 0.5))
    return torch.stack(maps)


def random_map(adapter, images, target, grid=8, seed=0):
    """Noise drawn from the image's content."""
    maps = []
    for image in images:
        content = (image * 255).round().to(torch.uint8).numpy().tobytes()
        number = int.from_bytes(hashlib.sha256(content + str(seed).encode()).digest()[:8], "little") // 2
        noise = torch.rand(grid, grid, generator=torch.Generator().manual_seed(number))
        maps.append(enlarged(noise.double(), *image.shape[1:]))
    return torch.stack(maps)
