"""A map drawn over its image."""

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from attncompare.reporting.gallery import enlarged

SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"
CLIP = 99.5  # percentile at the top of the color scale: one hot pixel must not darken the rest


def is_signed(values: NDArray[np.float32]) -> bool:
    """Whether evidence against the target is a real part of a map."""
    low, high = float(values.min()), float(values.max())
    return low < 0 and -low > 0.05 * max(high, 1e-30)


def scale_of(values: NDArray[np.float32]) -> tuple[float, float]:
    """The values at the ends of the color scale: around 0 for signed maps, from the minimum for others.

    The top is the 99.5th percentile.
    """
    if is_signed(values):
        top = float(np.percentile(np.abs(values), CLIP)) or 1.0
        return -top, top
    low, top = float(values.min()), float(np.percentile(values, CLIP))
    top = top if top > low else float(values.max())
    return low, top if top > low else low + 1.0


def to_unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a map to [0, 1] by its `scale_of`; 0 lies at 0.5 of signed maps."""
    low, top = scale_of(values)
    return np.asarray(np.clip((values - low) / (top - low), 0, 1), dtype=np.float32)


def colorize(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h,w) map -> (H,W,3) colors: inferno, or red (for) and blue (against) for signed maps."""
    scale = colormaps[DIVERGING if is_signed(values) else SEQUENTIAL]
    return np.asarray(scale(to_unit(enlarged(values, size)))[..., :3] * 255, dtype=np.uint8)


def pixels_of(images: Tensor) -> NDArray[np.uint8]:
    """(B,3,H,W) in [0, 1] -> (B,H,W,3) uint8."""
    return np.asarray((images.detach().cpu().permute(0, 2, 3, 1) * 255).round().byte().numpy())


def overlay(image: NDArray[np.uint8], values: NDArray[np.float32], opacity: float = 0.8) -> NDArray[np.uint8]:
    """(H,W,3) the gray image under the colored map, which covers more of it the stronger the evidence is.

    opacity: in [0, 1], where the evidence is strongest; a signed map vanishes at 0, another keeps a third at its minimum,
    so that the photo can be read wherever the map says little.
    """
    gray = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    large = enlarged(values, image.shape[:2])
    unit, signed = to_unit(large), is_signed(values)
    strength = np.abs(2 * unit - 1) if signed else (1 + 2 * unit) / 3
    cover = opacity * strength[..., None]
    colors = colormaps[DIVERGING if signed else SEQUENTIAL](unit)[..., :3] * 255
    return np.asarray(np.clip(gray * (1 - cover) + colors * cover, 0, 255), dtype=np.uint8)
