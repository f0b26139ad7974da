"""SigLIP 2's models of flexible shape (transformers' type siglip2) take an image as a row of flattened patches."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("siglip2", "siglip2_vision_model")
"""Model types that read patches."""


def to_patches(images: Tensor, side: int) -> Tensor:
    """(B,3,H,W) -> (B, H/side W/side, 3 side side), rows first; inside a patch the colors of a pixel are neighbors.

    >>> to_patches(torch.zeros(2, 3, 32, 64), 16).shape
    torch.Size([2, 8, 768])
    """
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, side * side * channels)


def to_images(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The reverse: (B, rows columns, 3 side side) -> (B,3,H,W)."""
    rows, columns = grid
    parts = patches.reshape(len(patches), rows, columns, side, side, -1)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * side, columns * side)


def read_images(call: Callable[..., Any], side: int, pixel_values: Tensor, **options: object) -> Any:
    """Call what takes patches with images (B,3,H,W), both sides multiples of the patch: they fill all of them, no mask."""
    count, _, height, width = pixel_values.shape
    shapes = torch.tensor([[height // side, width // side]] * count, device=pixel_values.device)
    return call(
        pixel_values=to_patches(pixel_values, side), pixel_attention_mask=None, spatial_shapes=shapes, **options
    )


class ReadsImages(nn.Module):
    """A model that takes patches as one that takes images."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model = model
        self.side = side

    def forward(self, pixel_values: Tensor, **options: object) -> Any:
        """What the model returns."""
        return read_images(self.model, self.side, pixel_values, **options)


class MakesImages:
    """The image processor of such a model as one that makes images: a square for a square picture."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, **options: Any) -> Mapping[str, Tensor]:
        """`pixel_values` (1,3,H,W) of one picture."""
        made = self.processor(**options)
        rows, columns = made["spatial_shapes"][0].tolist()
        patches = made["pixel_values"][:, : rows * columns]
        return {"pixel_values": to_images(patches, (rows, columns), self.processor.patch_size)}


def vision_config(config: Any) -> Any:
    """The part of a configuration that is about images: of a pair of encoders one of two, else the whole."""
    return getattr(config, "vision_config", config)


def patch_side(config: Any) -> int:
    """The side of a patch in pixels."""
    return int(vision_config(config).patch_size)


def square_side(config: Any) -> int:
    """The side in pixels of the square that has as many patches as the model has learned places for."""
    return patch_side(config) * math.isqrt(int(vision_config(config).num_patches))
