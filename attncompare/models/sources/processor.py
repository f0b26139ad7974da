"""What an image processor of transformers does to a picture, measured: its fields do not say it all.

EfficientNet's divides by the standard deviation twice, MobileViT's swaps red and blue, LeViT's resizes to 256 / 224 of the
size it declares, Perceiver's crops before it resizes. So colors are read off plain pictures; of the crops that the fields
may mean that one is taken which shows the same part of soft pictures. A processor that does anything else is refused.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attncompare.errors import UnsupportedModelError
from attncompare.models.preprocessing import Preprocessing, fit_image, to_tensor

DEFAULT_SIDE = 224
RULE = 224 / 256  # by which classes crop that do not say so
COLORS = ((0, 0, 0), (255, 255, 255), (255, 0, 0))
SHAPES = ((300, 450), (600, 400))  # not one shape scaled: what does not resize shows another share of each
CLOSE = 0.05  # mean difference over standard deviation: filters differ by less, half a percent of cropping by more
KEEPS_SHAPE = "its image processor gives pictures of other shapes other sizes; here all are squashed to one size"
SQUASHES = (
    "its image processor squashes a picture before it crops; here it keeps its shape, as these models were trained"
)
PADS = "its image processor pads pictures to the size of the model; here they are squashed to it"
PADDING = ("DonutImageProcessor", "DonutImageProcessorPil")  # of documents, most of them of one shape


def preprocessing_of(processor: Any, size: tuple[int, int] | None, name: str) -> tuple[Preprocessing, str]:
    """The Preprocessing that does what the processor does, and a note where it knowingly departs from it.

    size: of the model's configuration, where it has one. Raises UnsupportedModelError for a processor that does more than
    resize, crop at the center, and scale each channel.
    """
    resized, cropped = (pair(getattr(processor, field, None)) for field in ("size", "crop_size"))
    how = _colors(processor, size or resized or (DEFAULT_SIDE, DEFAULT_SIDE), name)
    resized = pair(getattr(processor, "resize_short", None)) or resized  # PP-LCNet's, which reads no `size`
    ratio = cropped[0] / resized[0] if resized and cropped else 1.0
    stated = getattr(processor, "crop_pct", getattr(processor, "data_config", {}).get("crop_pct"))
    views = [_views(processor, how, (None, stated, ratio, 1 / ratio, RULE * ratio), shape, name) for shape in SHAPES]
    worst = {view: max(each[view] for each in views) for view in views[0]}
    crop, squashed = min(worst, key=worst.__getitem__)
    if (apart := worst[crop, squashed]) < CLOSE:
        return replace(how, crop=crop), SQUASHES if squashed else ""
    kind = type(processor).__name__
    if np.isinf(apart) or kind in PADDING:
        return how, PADS if kind in PADDING else KEEPS_SHAPE
    raise UnsupportedModelError(
        f"{name}: what its image processor ({kind}) makes of a picture cannot be described by a resize and a crop at the "
        f"centre (the input of the model would differ by {apart:.2f} standard deviations)"
    )


def _colors(processor: Any, start: tuple[int, int], name: str) -> Preprocessing:
    """What becomes of plain pictures of a size: size, mean, std, order of the channels; and the filter it names."""
    plain = [_run(processor, np.full((*start, 3), color, np.uint8), name) for color in COLORS]
    height, width = plain[0].shape[1:]
    black, white, red = (pixels[:, height // 2, width // 2] for pixels in plain)
    std, share = 1 / (white - black), (red - black) / (white - black)
    bgr = bool(share[2] > share[0])
    if not torch.allclose(share, torch.eye(3)[2 if bgr else 0], atol=0.01):
        raise UnsupportedModelError(f"{name}: its image processor does not scale each colour channel by itself")
    mean, std = ((values.flip(0) if bgr else values) for values in (-black * std, std))
    named = getattr(processor, "resample", None)
    of_timm = getattr(processor, "data_config", {}).get("interpolation", "bilinear")
    return Preprocessing(
        size=(height, width),
        mean=_digits(mean, getattr(processor, "image_mean", None)),
        std=_digits(std, getattr(processor, "image_std", None)),
        interpolation=of_timm if named is None else Image.Resampling(named).name.lower(),
        bgr=bgr,
    )


def _run(processor: Any, picture: NDArray[np.uint8], name: str) -> Tensor:
    """(H,W,3) uint8 -> (3,h,w) what the model gets."""
    try:
        made = processor(images=Image.fromarray(picture), return_tensors="pt")
    except Exception as error:
        raise UnsupportedModelError(f"{name}: its image processor does not take a picture ({error})") from error
    shape = tuple(getattr(made.get("pixel_values"), "shape", ()))
    if len(shape) != 4 or shape[:2] != (1, 3):
        raise UnsupportedModelError(
            f"{name}: its image processor makes {shape or ', '.join(made)} of a picture, not (1, 3, H, W)"
        )
    pixels: Tensor = made["pixel_values"][0].float()
    return pixels


def _digits(measured: Tensor, declared: Any) -> tuple[float, ...]:
    """The processor's own digits where they agree with what was measured, else the measured ones to 6 places."""
    if isinstance(declared, list | tuple) and np.allclose(measured, declared, atol=1e-5, rtol=1e-5):
        return tuple(float(value) for value in declared)
    return tuple(round(value, 6) + 0.0 for value in measured.tolist())


def _views(
    processor: Any, how: Preprocessing, crops: tuple[float | None, ...], shape: tuple[int, int], name: str
) -> dict[tuple[float | None, bool], float]:
    """(crop, whether the picture is squashed before it) -> how far ours is from theirs on a soft picture."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    theirs = _run(processor, picture, name)
    views = [(crop, squashed) for crop in dict.fromkeys(crops) for squashed in (False, True)[: 1 + bool(crop)]]
    if tuple(theirs.shape[1:]) != how.size:
        return dict.fromkeys(views, np.inf)
    theirs = theirs.flip(0) if how.bgr else theirs
    theirs = theirs * torch.tensor(how.std)[:, None, None] + torch.tensor(how.mean)[:, None, None]
    found = {}
    for crop, squashed in views:
        larger = (round(how.size[0] / (crop or 1)), round(how.size[1] / (crop or 1)))
        seen = fit_image(picture, replace(how, size=larger)) if squashed else picture
        found[crop, squashed] = _difference(fit_image(seen, replace(how, crop=crop)), theirs)
    return found


def _difference(ours: NDArray[np.uint8], theirs: Tensor) -> float:
    """Mean difference over the standard deviation, at the best shift by up to a pixel: odd crops are rounded either way."""
    height, width = (2 * side - 1 for side in ours.shape[:2])
    halves = F.interpolate(to_tensor(ours)[None], (height, width), mode="bilinear", align_corners=True)[0]
    step = 1 + min(height, width) // 1000  # of large pictures not every pixel
    pixels = [
        halves[:, y : y + height - 4 : 2 * step, x : x + width - 4 : 2 * step] for y in range(5) for x in range(5)
    ]
    inner = theirs[:, 1:-1:step, 1:-1:step]
    return min(float((one - inner).abs().mean() / inner.std()) for one in pixels)


def pair(size: Any) -> tuple[int, int] | None:
    """(H, W) from the many ways in which a size is written."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    for keys in (("height", "width"), ("shortest_edge", "shortest_edge")):
        found: list[Any] = [size.get(key) if hasattr(size, "get") else getattr(size, key, None) for key in keys]
        if all(found):
            return int(found[0]), int(found[1])
    return None
