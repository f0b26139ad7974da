"""Images seen through their own maps."""

import torch
from torch import Tensor

from attncompare.maps import normalize_map
from attncompare.metrics._base import Score


def images_behind_maps(images: Tensor, maps: Tensor, mean_color: Tensor) -> Tensor:
    """(B,3,H,W): each image times its map scaled to [0, 1], in the model's normalized space.

    There zero is the model's mean color, so in pixel space the product is mean + m (x - mean). maps: (B,H,W).
    """
    weight = normalize_map(maps.to(images))[:, None]
    return mean_color + weight * (images - mean_color)


def scores_behind_maps(images: Tensor, maps: Tensor, target_score: Score, mean_color: Tensor) -> Tensor:
    """(B,) the target's score of each image behind its own map."""
    which = torch.arange(len(images), device=images.device)
    return target_score(images_behind_maps(images, maps, mean_color), which)
