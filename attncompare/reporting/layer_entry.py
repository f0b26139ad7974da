"""What the report shows of one layer of one model on one image."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attncompare.benchmark.layer_maps import LayerMap
from attncompare.reporting.levels import SMALL
from attncompare.reporting.overlay import is_signed, to_unit
from attncompare.reporting.pictures import gray

LAYER_SIDE = 48
"""Maps of layers are reduced to at most this side."""


def layer_entry(one: LayerMap, exact: bool) -> dict[str, Any]:
    """A layer's maps, each scaled by its own `scale_of`, one below the other in one picture; of heads first their mean."""
    maps = one.maps if one.kind == "channel" else np.concatenate([one.maps.mean(axis=0, keepdims=True), one.maps])
    index = [int(i) for i in one.index] if one.kind == "channel" else [-1, *map(int, one.index)]
    small = [_reduced(values) for values in maps]
    units = [np.rint(to_unit(values) * 255).astype(np.uint8) for values in small]
    return {
        "layer": one.layer,
        "kind": one.kind,
        "index": index,
        "grid": small[0].shape,
        "picture": gray(np.concatenate(units), exact or small[0].size <= SMALL),
        "signed": [is_signed(values) for values in small],
        "mean": [float(f"{values.mean():.4g}") for values in maps],
        "peak": [float(f"{values.max():.4g}") for values in maps],
    }


def _reduced(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h,w) at most LAYER_SIDE on a side, by the mean of the places that fall together."""
    h, w = values.shape
    if max(h, w) <= LAYER_SIDE:
        return values
    size = tuple(max(1, side * LAYER_SIDE // max(h, w)) for side in (h, w))
    reduced = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values)[None, None], size)
    return np.asarray(reduced[0, 0].numpy(), dtype=np.float32)
