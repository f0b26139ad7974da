"""Image files to tensors: read any usual file safely, then the model's own resize and crop."""

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from attncompare.errors import ImageError, reason_of
from attncompare.models.adapter import ModelAdapter
from attncompare.models.preprocessing import fit_image as fit_image
from attncompare.models.preprocessing import fit_mask as fit_mask
from attncompare.models.preprocessing import to_tensor as to_tensor

MAX_PIXELS = 100_000_000
ALPHA_COLOR = (255, 255, 255)
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file calls itself. Pillow knows more, some of which no decoder for hostile files (EPS)."""

BITS, COLORS, KIND = 258, 262, 339  # tags of a TIFF: bits per sample, photometric interpretation, sample format
WHITE_IS_ZERO, UNSIGNED = 0, 1


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _white(image: Image.Image) -> float:
    """The value that stands for white in a gray image of more than 8 bits; negative where white is stored as zero.

    Pillow hands on such values as they are stored. A 32-bit or signed integer has no white that a file states.
    """
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and image.format is None:  # made in memory
        raise ImageError("its 32-bit integers have no known white; convert it to mode L or I;16")
    if tags is None or image.mode == "F":
        return 1.0 if image.mode == "F" else 65535.0
    bits, kind = tags.get(BITS, (16,))[0], tags.get(KIND, (UNSIGNED,))[0]
    if image.mode == "I" or kind != UNSIGNED:
        raise ImageError(f"its {bits}-bit integers have no known white; save it with 8 or 16 unsigned bits")
    white = 2.0 ** int(bits) - 1
    return -white if tags.get(COLORS) == WHITE_IS_ZERO else white


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """Gray of 16 bits, or of floats in [0, 1], scaled to 8 bits; a plain conversion would clip it."""
    values = np.array(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= abs(white):  # also where one is NaN
        raise ImageError(f"its pixels range from {low:.4g} to {high:.4g}; 0 to {abs(white):g} is needed")
    clear = values == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else False
    values *= 255 / abs(white)
    np.rint(values, out=values)
    values = 255 - values if white < 0 else values
    return Image.fromarray(np.where(clear, ALPHA_COLOR[0], values).astype(np.uint8))


def _to_rgb(image: Image.Image, white: float) -> Image.Image:
    """Any mode to RGB; what is transparent lies on ALPHA_COLOR."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image, white).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*ALPHA_COLOR, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _decode(path: str | Path) -> NDArray[np.uint8]:
    """As `read_image`; raises whatever a damaged file makes Pillow raise."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
        raise ImageError("it is no regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a file's own tags, and of more pixels than Pillow likes
        with Image.open(path, formats=_formats()) as opened:
            opened.seek(0)
            return _pixels_of(opened)


def _pixels_of(opened: Image.Image) -> NDArray[np.uint8]:
    """The pixels of the frame at which a Pillow image stands."""
    if not opened.width * opened.height:
        raise ImageError(f"{opened.width} x {opened.height} pixels; it is empty")
    if opened.width * opened.height > MAX_PIXELS:
        raise ImageError(f"{opened.width} x {opened.height} pixels; at most {MAX_PIXELS} are read")
    white = _white(opened) if opened.mode.startswith(("I", "F")) else 255.0
    return np.asarray(_to_rgb(ImageOps.exif_transpose(opened), white), dtype=np.uint8)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """(H,W,3) uint8 RGB of an image file: EXIF rotation applied, first frame, alpha on white.

    Gray of 16 bits is scaled, floats in [0, 1] too. Raises ImageError, with the reason, for a file that is missing, no
    image, truncated, empty or too large, or whose values have no known white.
    """
    with _named(str(path)):
        return _decode(path)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is an ImageError that names the picture."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: far too many pixels; at most {MAX_PIXELS} are read") from error
    except Exception as error:  # decoders raise anything on a damaged file
        raise ImageError(f"{name}: cannot be read as an image: {reason_of(error)}") from error


Picture = str | Path | Image.Image | NDArray[np.uint8]
"""An image file, a Pillow image, or (H,W,3) uint8 RGB pixels."""


def listed(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """The pictures, of which there may be one."""
    return [pictures] if isinstance(pictures, str | Path | Image.Image | np.ndarray) else list(pictures)


def load_images(pictures: Picture | Sequence[Picture], model: ModelAdapter) -> Tensor:
    """Fit pictures to a model: (B,3,H,W) float32 in [0, 1].

    pictures: files, Pillow images or (H,W,3) uint8 RGB arrays. Raises ImageError for one that cannot be read.

    >>> import attncompare as ac
    >>> load_images([np.zeros((300, 400, 3), np.uint8)], ac.load_model("demo/cnn")).shape
    torch.Size([1, 3, 64, 64])
    """
    given = listed(pictures)
    if not given:
        raise ImageError("no image was given; give a list of paths")
    how = model.source.preprocessing
    return torch.stack([to_tensor(fit_image(_pixels(one), how)) for one in given]).to(model.device)


def _pixels(picture: Picture) -> NDArray[np.uint8]:
    """The pixels of a file, of a Pillow image, or of an array that is an image."""
    if isinstance(picture, Image.Image):
        with _named("the Pillow image"):
            return _pixels_of(picture)
    if not isinstance(picture, np.ndarray):
        return read_image(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ImageError(f"an array of {picture.dtype} and shape {picture.shape}; (H, W, 3) of uint8 is an image")
    return picture
