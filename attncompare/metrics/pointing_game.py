"""Pointing game."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric


@metric(
    better="higher",
    reference="Zhang et al., arXiv:1608.00507, section 4.1, without tolerance",
    undefined="the object lies outside the image as the model sees it",
)
def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """1 if the largest map value lies on the object, else 0; tied maxima count by the share that does."""
    flat, inside = maps.flatten(1), masks.flatten(1).float()
    peaks = (flat == flat.amax(dim=1, keepdim=True)).float()
    hit = (peaks * inside).sum(dim=1) / peaks.sum(dim=1)
    return torch.where(inside.any(dim=1), hit, torch.full_like(hit, torch.nan))
