"""What an image processor of transformers does to a picture, measured: its fields do not say it all.

EfficientNet's divides by the standard deviation twice, MobileViT's swaps red and blue, LeViT's resizes to 256 / 224 of the
size it declares. So plain pictures tell the colors, and soft ones which of the crops that the fields may mean is right.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attncompare.errors import UnsupportedModelError
from attncompare.models.preprocessing import Preprocessing, fit_image, to_tensor

DEFAULT_SIDE = 224
COLORS = ((0, 0, 0), (255, 255, 255), (255, 0, 0))
RULE = 224 / 256  # by which classes crop that do not say so
SHAPES = ((300, 450), (600, 400))  # not one shape scaled: what does not resize shows another share of each
CLOSE = 0.05  # mean difference over standard deviation: filters differ by less, half a percent of cropping by more
KEEPS_SHAPE = "its image processor gives pictures of other shapes other sizes; here all are squashed to one size"
SQUASHES = "its image processor squashes a picture before it crops; here it keeps its shape, as in training"
PADS = "its image processor pads pictures to the size of the model; here they are squashed to it"
PADDING = ("DonutImageProcessor", "DonutImageProcessorPil")  # of documents, most of them of one shape


def preprocessing_of(processor: Any, size: tuple[int, int] | None, name: str) -> tuple[Preprocessing, str]:
    """The Preprocessing that does what the processor does, and a note where it knowingly departs from it.

    size: of the model's configuration, where it has one. Raises UnsupportedModelError for a processor that does more than
    resize, crop at the center, and scale each channel.
    """
    resized, cropped = (pair(getattr(processor, field, None)) for field in ("size", "crop_size"))
    how = _colors(processor, size or resized or (DEFAULT_SIDE, DEFAULT_SIDE), name)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8))
    soft = [np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) for height, width in SHAPES]
    theirs = [_run(processor, picture, name) for picture in soft]
    if any(pixels.shape[1:] != how.size for pixels in theirs):
        return how, KEEPS_SHAPE
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    shown = [(pixels.flip(0) if how.bgr else pixels) * std + mean for pixels in theirs]
    resized = pair(getattr(processor, "resize_short", None)) or resized  # PP-LCNet's, which reads no `size`
    ratio = cropped[0] / resized[0] if resized and cropped else 1.0
    stated = getattr(processor, "crop_pct", getattr(processor, "data_config", {}).get("crop_pct"))
    crops = dict.fromkeys((None, stated, ratio, 1 / ratio, RULE * ratio))
    apart = {}
    for crop, squashed in product(crops, (False, True)):
        ours = [_view(picture, replace(how, crop=crop), squashed) for picture in soft]
        apart[crop, squashed] = max(map(_difference, ours, shown))
    crop, squashed = min(apart, key=apart.__getitem__)
    if apart[crop, squashed] < CLOSE:
        return replace(how, crop=crop), SQUASHES if squashed else ""
    if (kind := type(processor).__name__) in PADDING:
        return how, PADS
    raise UnsupportedModelError(
        f"{name}: what its image processor ({kind}) makes of a picture cannot be described by a resize and a crop at the "
        f"center (the input of the model would differ by {apart[crop, squashed]:.2f} standard deviations)"
    )


def _colors(processor: Any, start: tuple[int, int], name: str) -> Preprocessing:
    """What becomes of plain pictures of a size: size, mean, std, order of the channels; and the filter it names."""
    plain = [_run(processor, np.full((*start, 3), color, np.uint8), name) for color in COLORS]
    height, width = plain[0].shape[1:]
    black, white, red = (pixels[:, height // 2, width // 2] for pixels in plain)
    std, share = 1 / (white - black), (red - black) / (white - black)
    bgr = bool(share[2] > share[0])
    mean, std, share = (values.flip(0) if bgr else values for values in (-black * std, std, share))
    if not torch.allclose(share, torch.eye(3)[0], atol=0.01):
        raise UnsupportedModelError(f"{name}: its image processor does not scale each color channel by itself")
    filter_ = getattr(processor, "resample", getattr(processor, "data_config", {}).get("interpolation"))
    return Preprocessing(
        size=(height, width),
        mean=_digits(mean, getattr(processor, "image_mean", None)),
        std=_digits(std, getattr(processor, "image_std", None)),
        interpolation=Image.Resampling(filter_).name.lower() if isinstance(filter_, int) else filter_ or "bilinear",
        bgr=bgr,
    )


def _run(processor: Any, picture: NDArray[np.uint8], name: str) -> Tensor:
    """(H,W,3) uint8 -> (3,h,w) what the model gets."""
    try:
        made = processor(images=Image.fromarray(picture), return_tensors="pt")
    except Exception as error:
        raise UnsupportedModelError(f"{name}: its image processor does not take a picture ({error})") from error
    pixels = made.get("pixel_values")
    shape = tuple(getattr(pixels, "shape", ()))
    if len(shape) != 4 or shape[:2] != (1, 3):
        made_of = shape or ", ".join(made)
        raise UnsupportedModelError(f"{name}: its image processor makes {made_of} of a picture, not (1, 3, H, W)")
    return torch.as_tensor(pixels[0]).float()


def _digits(measured: Tensor, declared: Any) -> tuple[float, ...]:
    """The processor's own digits where they agree with what was measured, else the measured ones to 6 places."""
    if isinstance(declared, list | tuple) and np.allclose(measured, declared, atol=1e-5, rtol=1e-5):
        return tuple(float(value) for value in declared)
    return tuple(round(value, 6) + 0.0 for value in measured.tolist())


def _view(picture: NDArray[np.uint8], how: Preprocessing, squashed: bool) -> Tensor:
    """(3,h,w) what ours shows of a picture; squashed: one whose shape was lost before the crop."""
    if squashed:
        height, width = (round(side / (how.crop or 1)) for side in how.size)
        picture = fit_image(picture, replace(how, size=(height, width), crop=None))
    return to_tensor(fit_image(picture, how))


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Mean difference over the standard deviation, but for a shift by up to a pixel: odd crops are rounded either way."""
    slopes = torch.stack(torch.gradient(ours, dim=(1, 2))).flatten(1)
    rest = (theirs - ours).flatten()
    shift = torch.linalg.solve(slopes @ slopes.T, slopes @ rest).clamp(-1, 1)
    return float((rest - shift @ slopes).abs().mean() / theirs.std())


def pair(size: Any) -> tuple[int, int] | None:
    """(H, W) from the many ways in which a size is written."""
    if isinstance(size, int):
        return size, size
    if hasattr(size, "get"):
        short = size.get("shortest_edge")
        size = size.get("height", short), size.get("width", short)
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 and all(size) else None
