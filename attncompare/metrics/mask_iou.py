"""Overlap with the object."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.perturbation import rank_units


@metric(
    better="higher",
    reference="intersection over union at the object's own area, so that no threshold is chosen",
    undefined="the mask is empty",
    bounds=(0, 1),
)
def mask_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the object and as many of the highest map values as the object has pixels.

    Ties are broken by a seeded permutation, as in the curves.
    """
    values = []
    for one, mask in zip(maps.flatten(1), masks.flatten(1), strict=True):
        area = int(mask.sum())
        if area == 0:
            values.append(torch.nan)
            continue
        top = rank_units(one, seed=0) < area
        values.append(float((top & mask).sum() / (top | mask).sum()))
    return torch.tensor(values)
