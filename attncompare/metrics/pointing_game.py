"""Pointing game."""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from attncompare.metrics._base import metric


def within(masks: Tensor, tolerance: float) -> Tensor:
    """(B,H,W) bool: the pixels whose distance to the nearest pixel of the object is at most `tolerance` pixels.

    >>> within(torch.tensor([[[True, False, False, False]]]), 2).tolist()
    [[[True, True, True, False]]]
    """
    near = [distance_transform_edt(~one.numpy()) <= tolerance if one.any() else one.numpy() for one in masks.cpu()]
    return torch.from_numpy(np.stack(near))


@metric(
    better="higher",
    reference="Zhang et al., arXiv:1608.00507, section 4.1 (there with a tolerance of 15 pixels; here 0 unless set)",
    undefined="the object lies outside the image as the model sees it",
    bounds=(0, 1),
    meaning={"tolerance": "pixels that a maximum may lie beside the object and still hit"},
    limits={"tolerance": (0, 100_000)},
)
def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """1 if the largest map value lies on the object, else 0; tied maxima count by the share that does.

    maps: (B,H,W). masks: (B,H,W) bool. tolerance: a maximum so many pixels beside the object is a hit as well.
    """
    inside = (within(masks, tolerance) if tolerance else masks).flatten(1).float().to(maps.device)
    flat = maps.flatten(1)
    peaks = (flat == flat.amax(dim=1, keepdim=True)).float()
    hit = (peaks * inside).sum(dim=1) / peaks.sum(dim=1)
    return torch.where(inside.any(dim=1), hit, torch.full_like(hit, torch.nan))
