"""What an image processor does to a picture, measured: its fields do not say it all, since classes add rules of their own.

EfficientNet's divides by the standard deviation twice, MobileViT's and PP-LCNet's swap red and blue, LeViT's resizes to
256 / 224 of the size it declares, Perceiver's crops before it resizes. Pictures of one colour and a colour ramp show all
of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.adapters.base import Preprocessing
from attncompare.errors import UnsupportedModelError

DEFAULT_SIDE = 224
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
MIXED = (40, 120, 200)  # a colour that no channel mixing leaves where it is
RAMP = (512, 768)  # height and width of the picture that shows what is cut away
WHOLE = 0.99  # a larger share of both sides is the whole picture


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


def preprocessing_of(processor: Any, size: tuple[int, int] | None, name: str) -> Preprocessing:
    """The Preprocessing that does what the processor does. size: of the model's configuration, where it has one.

    Raises UnsupportedModelError when what it makes of a picture is not one with each channel scaled and shifted.
    """
    start = size or pair(getattr(processor, "size", None)) or (DEFAULT_SIDE, DEFAULT_SIDE)
    colours = np.vstack([np.zeros(3), 255 * np.eye(3), MIXED]).astype(np.uint8)
    solid = [_run(processor, np.broadcast_to(colour, (*start, 3)), name) for colour in colours]
    mean, std, bgr = _colours(torch.stack([out[:, out.shape[1] // 2, out.shape[2] // 2] for out in solid]), name)
    side = (int(solid[0].shape[1]), int(solid[0].shape[2]))
    declared = [getattr(processor, field, None) for field in ("image_mean", "image_std")]
    return Preprocessing(
        size=side,
        mean=_settled(mean, declared[0]),
        std=_settled(std, declared[1]),
        interpolation=_interpolation(processor),
        crop=_crop(processor, side, Preprocessing(side, mean, std, bgr=bgr), name),
        bgr=bgr,
    )


def _run(processor: Any, picture: NDArray[np.uint8], name: str) -> Tensor:
    """(H,W,3) uint8 -> (3,h,w) what the model gets."""
    from PIL import Image

    try:
        made: Mapping[str, Any] = processor(images=Image.fromarray(np.ascontiguousarray(picture)), return_tensors="pt")
    except Exception as error:
        raise UnsupportedModelError(f"{name}: its image processor does not take a picture ({error})") from error
    pixels = made.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else ", ".join(made)
        raise UnsupportedModelError(f"{name}: its image processor makes {shape} of a picture, not (1, 3, H, W)")
    return pixels[0].float()


def _colours(seen: Tensor, name: str) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """(mean, std, bgr) from what becomes of black, red, green, blue and MIXED, (5,3); per channel of the picture."""
    black, gains = seen[0], seen[1:4] - seen[0]  # gains: colour channel x channel that the model gets
    for bgr, order in ((False, [0, 1, 2]), (True, [2, 1, 0])):
        gain = gains[torch.arange(3), order]
        mixed = black.clone()
        mixed[order] += gain * torch.tensor(MIXED) / 255
        scale = float(gains.abs().max())
        if scale > 0 and bool(gain.all()) and torch.allclose(mixed, seen[4], atol=0.01 * scale, rtol=0):
            std = 1 / gain
            return tuple((-black[order] * std).tolist()), tuple(std.tolist()), bgr
    raise UnsupportedModelError(f"{name}: its image processor does not scale each colour channel by itself")


def _settled(measured: tuple[float, ...], declared: Any) -> tuple[float, ...]:
    """The processor's own digits where they agree with what was measured, else the measured ones to 6 places."""
    if isinstance(declared, list | tuple) and np.allclose(measured, declared, atol=1e-5, rtol=1e-5):
        return tuple(float(value) for value in declared)
    return tuple(round(value, 6) + 0.0 for value in measured)


def _interpolation(processor: Any) -> str:
    given = getattr(processor, "resample", None)
    if given is None:  # timm's wrapper keeps it elsewhere
        return str(getattr(processor, "data_config", {}).get("interpolation", "bilinear"))
    return RESAMPLING.get(int(given), "bilinear")


def _crop(processor: Any, size: tuple[int, int], how: Preprocessing, name: str) -> float | None:
    """The fraction of the resized side that is kept; None when the whole picture is squashed.

    A processor that squashes the picture to a square before it crops (DeiT's, in transformers only) counts as one that
    keeps the shape, which is how those models were trained and published.
    """
    out = _run(processor, _ramp(*RAMP), name)
    if tuple(out.shape[1:]) != size:
        return None  # it keeps the shape of every picture; one size for all means squashing
    seen = out.flip(0) if how.bgr else out
    seen = seen * torch.tensor(how.std).reshape(3, 1, 1) + torch.tensor(how.mean).reshape(3, 1, 1)
    middle = [slice(side // 4, side - side // 4) for side in size]  # clear of any padding
    seen = seen[:, middle[0], middle[1]]
    across, share = _share(seen[0].mean(dim=0), size[1]), _share(seen[1].mean(dim=1), size[0])
    if min(across, share) > WHOLE:
        return None
    for declared in (getattr(processor, "crop_pct", None), _declared_crop(processor)):
        if declared and abs(declared - share) < 0.01:
            return float(declared)
    return size[0] / round(size[0] / share)


def _ramp(height: int, width: int) -> NDArray[np.uint8]:
    """(H,W,3) red grows to the right and green downwards, rounded at random so that means are finer than one level."""
    right, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    noise = np.random.default_rng(0).random((height, width, 3))
    levels = np.stack(np.broadcast_arrays(right[None, :], down[:, None], 0.0), axis=-1) * 255
    return np.floor(levels + noise).astype(np.uint8)


def _declared_crop(processor: Any) -> float | None:
    resized, cropped = (pair(getattr(processor, field, None)) for field in ("size", "crop_size"))
    return cropped[0] / resized[0] if resized and cropped else None


def _share(ramp: Tensor, side: int) -> float:
    """The share of a 0-to-1 ramp that lies on a side, by the slope of the (n,) samples in its middle."""
    place = torch.arange(len(ramp), dtype=torch.float64) - (len(ramp) - 1) / 2
    return float((place * ramp.double()).sum() / (place * place).sum()) * side
