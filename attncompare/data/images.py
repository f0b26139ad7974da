"""Image files to tensors: read any usual file safely, then the model's own resize and crop."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from attncompare.adapters.base import ModelAdapter, Preprocessing
from attncompare.errors import ImageError

MAX_PIXELS = 100_000_000
ALPHA_COLOUR = (255, 255, 255)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit and float greys are scaled (a plain conversion clips them), alpha lies on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        return Image.fromarray(np.clip(np.rint(values / top * 255), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*ALPHA_COLOUR, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """(H,W,3) uint8 RGB of an image file: EXIF rotation applied, first frame, alpha on white.

    Raises ImageError, with the reason, for a file that is missing, no image, truncated, empty or too large.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ImageError(f"{path}: {opened.width} x {opened.height} pixels; at most {MAX_PIXELS} are read")
                opened.seek(0)
                return np.asarray(_to_rgb(ImageOps.exif_transpose(opened)), dtype=np.uint8)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: far too many pixels; at most {MAX_PIXELS} are read") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise ImageError(f"{path}: cannot be read as an image ({error})") from error


def fit_image(image: NDArray[np.uint8], how: Preprocessing, *, mask: bool = False) -> NDArray[np.uint8]:
    """Resize and crop as the model wants it; a mask is treated alike, without interpolation."""
    filter_ = FILTERS["nearest"] if mask else FILTERS.get(how.interpolation, FILTERS["bilinear"])
    height, width = how.size
    picture = Image.fromarray(image)
    if how.crop is None and picture.size == (width, height):
        return image
    if how.crop is None:
        return np.asarray(picture.resize((width, height), filter_))
    picture = picture.resize(_resized(picture.size, how.size, how.crop), filter_)
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return np.asarray(picture.crop((left, top, left + width, top + height)))


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


def load_images(paths: Sequence[str | Path], model: ModelAdapter) -> Tensor:
    """Read files and fit them to a model: (B,3,H,W) float32 in [0, 1]. Raises ImageError for a file it cannot read."""
    how = model.source.preprocessing
    return torch.stack([to_tensor(fit_image(read_image(path), how)) for path in paths]).to(model.device)
