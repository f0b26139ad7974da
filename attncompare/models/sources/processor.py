"""What an image processor does to a picture, measured: its fields do not say it all, since classes add rules of their own.

EfficientNet's divides by the standard deviation twice, MobileViT's and PP-LCNet's swap red and blue, LeViT's resizes to
256 / 224 of the size it declares, Perceiver's crops before it resizes. Pictures of one colour and a colour ramp show all
of it. What they do not show (padding, mirroring, a crop aside) is found by comparing the whole way on a soft picture.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attncompare.errors import UnsupportedModelError
from attncompare.models.preprocessing import FILTERS, Preprocessing, fit_image, to_tensor

DEFAULT_SIDE = 224
MIXED = (40, 120, 200)  # a colour that no channel mixing leaves where it is
RAMP = (512, 768)  # height and width of the picture that shows what is cut away
WHOLE = 0.99  # a larger share of both sides is the whole picture
SOFT = ((300, 450), (600, 400))  # unlike in pixels too: what does not resize shows another share of each
CELLS = 6  # colours across a soft picture; half a pixel matters little in it
CLOSE = 0.05  # mean difference over standard deviation: filters differ by less, half a degree of cropping by more
KEEPS_SHAPE = "its image processor gives pictures of other shapes other sizes; here all are squashed to one size"
SQUASHES = (
    "its image processor squashes a picture before it crops; here it keeps its shape, as these models were trained"
)
PADS = "its image processor pads pictures to the size of the model; here they are squashed to it"
PADDING_KNOWN = ("DonutImageProcessor",)  # of documents, most of them of one shape


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
    return next(name for name, resampling in FILTERS.items() if resampling == int(given))


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
    """The share of a 0-to-1 ramp that lies on a side, by the slope of the (n,) samples in its middle, either way."""
    place = torch.arange(len(ramp), dtype=torch.float64) - (len(ramp) - 1) / 2
    return abs(float((place * ramp.double()).sum() / (place * place).sum())) * side


def deviation(processor: Any, how: Preprocessing, name: str) -> str:
    """Where `how` knowingly departs from the processor, "" where it does not; UnsupportedModelError for other differences.

    Both make a model's input of soft pictures, landscape and portrait, which must agree but for one pixel of shift (a
    crop of an odd number of pixels is rounded either way).
    """
    notes = [_deviation(processor, how, _soft(*shape), name) for shape in SOFT]
    return next(filter(None, notes), "")


def _deviation(processor: Any, how: Preprocessing, picture: NDArray[np.uint8], name: str) -> str:
    theirs = _run(processor, picture, name)
    if tuple(theirs.shape[1:]) != how.size:
        return KEEPS_SHAPE
    theirs = theirs.flip(0) if how.bgr else theirs
    theirs = theirs * torch.tensor(how.std).reshape(3, 1, 1) + torch.tensor(how.mean).reshape(3, 1, 1)
    ours = to_tensor(fit_image(picture, how))
    apart = _apart(ours, theirs)
    if apart < CLOSE:
        return ""
    if how.crop is not None and _apart(to_tensor(_squashed(picture, how, how.crop)), theirs) < CLOSE:
        return SQUASHES
    padded = _is_padded(theirs)
    if padded and type(processor).__name__.startswith(PADDING_KNOWN):
        return PADS
    if any(_apart(ours.flip(axis), theirs) < CLOSE for axis in (1, 2)):
        what = "it mirrors pictures"
    else:
        what = "it pads pictures" if padded else "it shows another part of a picture than its middle"
    raise UnsupportedModelError(
        f"{name}: what its image processor makes of a picture cannot be described by a resize and a crop at the centre: "
        f"{what} (the input of the model would differ by {apart:.2f} standard deviations)"
    )


def _soft(height: int, width: int) -> NDArray[np.uint8]:
    """(H,W,3) a few colours that run into each other."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 255, (CELLS, CELLS, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _squashed(picture: NDArray[np.uint8], how: Preprocessing, crop: float) -> NDArray[np.uint8]:
    """Squash to the size before the crop, then crop."""
    larger = (round(how.size[0] / crop), round(how.size[1] / crop))
    return fit_image(fit_image(picture, replace(how, size=larger, crop=None)), how)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Mean difference of (3,h,w) over the standard deviation, at the best of the shifts by up to one pixel."""
    height, width = ours.shape[1:]
    if min(height, width) < 3:
        return float((ours - theirs).abs().mean() / theirs.std())
    halves = F.interpolate(ours[None], (2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)[0]
    steps = range(5)  # -1, -1/2, 0, 1/2 and 1 pixel
    shifted = [halves[:, y : y + 2 * height - 5 : 2, x : x + 2 * width - 5 : 2] for y in steps for x in steps]
    inner = theirs[:, 1:-1, 1:-1]
    return min(float((one - inner).abs().mean() / inner.std()) for one in shifted)


def _is_padded(pixels: Tensor) -> bool:
    """Whether an edge of (3,h,w) is of one colour, as no edge of a soft picture is."""
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return any(float(edge.std(dim=1).max()) < 1e-3 for edge in edges)
