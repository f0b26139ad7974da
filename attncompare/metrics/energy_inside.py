"""Energy inside the object."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric


@metric(
    better="higher",
    reference="Wang et al., arXiv:1910.01279, section 4.3 (energy-based pointing game), positive part of the map",
    undefined="the map has no positive value, or the object lies outside the image as the model sees it",
    bounds=(0, 1),
)
def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive part of the map that lies on the object; the object's area for a constant map."""
    energy = maps.clamp(min=0)
    total = energy.sum(dim=(1, 2))
    defined = (total > 0) & masks.flatten(1).any(dim=1)
    return torch.where(defined, (energy * masks).sum(dim=(1, 2)) / total, torch.full_like(total, torch.nan))
