"""Image files to tensors: read any usual file safely, then the model's own resize and crop."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.adapters.fitting import fit_image as fit_image
from attncompare.adapters.fitting import to_tensor as to_tensor
from attncompare.errors import ImageError

MAX_PIXELS = 100_000_000
ALPHA_COLOUR = (255, 255, 255)


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


def load_images(paths: Sequence[str | Path], model: ModelAdapter) -> Tensor:
    """Read files and fit them to a model: (B,3,H,W) float32 in [0, 1]. Raises ImageError for a file it cannot read."""
    how = model.source.preprocessing
    return torch.stack([to_tensor(fit_image(read_image(path), how)) for path in paths]).to(model.device)
