"""How a model wants its images, and the resize and crop that give it a picture so.

Here, and not beside the reading of files, because an adapter compares it with what a library's own processor does.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attncompare.errors import UnsupportedModelError

LARGEST = 25_000_000  # pixels of a resized picture before the crop: a long thin one would fill the memory
FILTERS = {resampling.name.lower(): resampling for resampling in Image.Resampling}
"""Pillow's filters by the names that libraries give them: nearest, bilinear, bicubic, lanczos, box, hamming."""


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images, from the model's own configuration.

    size: (H, W) pixels. mean, std: per channel, for images in [0, 1]. crop: fraction of the resized side that the
    center crop keeps; None squashes the whole image to the size. bgr: the model takes blue first; mean and std are those
    of red, green and blue all the same.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"
    crop: float | None = None
    bgr: bool = False


def fit_image(image: NDArray[np.uint8], how: Preprocessing, *, mask: bool = False) -> NDArray[np.uint8]:
    """Resize and crop as the model wants it; a mask is treated alike, without interpolation."""
    if how.interpolation not in FILTERS:
        raise UnsupportedModelError(f"interpolation {how.interpolation!r} is not one of {', '.join(FILTERS)}")
    filter_ = FILTERS["nearest" if mask else how.interpolation]
    height, width = how.size
    picture = Image.fromarray(image)
    if how.crop is None:
        return np.asarray(picture.resize((width, height), filter_))
    across, down = _resized(picture.size, how.size, how.crop)
    left, top = round((across - width) / 2), round((down - height) / 2)
    box = (left, top, left + width, top + height)
    if across * down <= LARGEST:
        return np.asarray(picture.resize((across, down), filter_).crop(box))
    x, y = picture.width / across, picture.height / down  # only what the crop keeps: the same but for rounding
    kept = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    return np.asarray(picture.resize((width, height), filter_, box=kept))


def fit_mask(mask: NDArray[np.bool_], how: Preprocessing) -> Tensor:
    """(H,W) bool of a picture -> (H,W) bool as the model sees it."""
    return torch.from_numpy(fit_image(mask.astype(np.uint8) * 255, how, mask=True) > 127)


def _resized(source: tuple[int, int], size: tuple[int, int], crop: float) -> tuple[int, int]:
    """(width, height) before the crop, rounded as torchvision and timm round: the shorter side is floor(size / crop)."""
    height, width = (math.floor(side / crop + 1e-6) for side in size)
    if height == width:
        short, long = min(source), max(source)
        other = int(width * long / short)
        return (width, other) if source[0] <= source[1] else (other, width)
    scale = max(width / source[0], height / source[1])
    return max(width, round(source[0] * scale)), max(height, round(source[1] * scale))


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H,W,3) uint8 -> (3,H,W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
