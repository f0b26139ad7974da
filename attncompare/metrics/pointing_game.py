"""Pointing game."""

from torch import Tensor

from attncompare.metrics._base import metric


@metric(better="higher", reference="Zhang et al., arXiv:1608.00507, section 4.1, without tolerance")
def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """1 if the largest map value lies on the object, else 0; tied maxima count by the share that does."""
    flat, inside = maps.flatten(1), masks.flatten(1).float()
    peaks = (flat == flat.amax(dim=1, keepdim=True)).float()
    return (peaks * inside).sum(dim=1) / peaks.sum(dim=1)
