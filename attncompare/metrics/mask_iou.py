"""Overlap with the object."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric


@metric(
    better="higher",
    reference="intersection over union at the object's own area, so that no threshold is chosen",
    undefined="the mask is empty",
)
def mask_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the object and as many of the highest map values as the object has pixels."""
    values = []
    for one, mask in zip(maps.flatten(1), masks.flatten(1), strict=True):
        area = int(mask.sum())
        if area == 0:
            values.append(torch.nan)
            continue
        top = torch.zeros_like(mask)
        top[torch.argsort(one, descending=True, stable=True)[:area]] = True
        values.append(float((top & mask).sum() / (top | mask).sum()))
    return torch.tensor(values)
