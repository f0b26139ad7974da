"""Average increase."""

import torch
from torch import Tensor

from attncompare.metrics._base import Score, metric
from attncompare.metrics.masking import scores_behind_maps


@metric(
    better="higher",
    reference="Chattopadhay et al., arXiv:1710.11063, section 4.1 (increase in confidence); a share, not percent",
    undefined="the score behind the map is not finite",
    bounds=(0, 1),
)
def average_increase(
    images: Tensor, maps: Tensor, clean_scores: Tensor, target_score: Score, mean_color: Tensor
) -> Tensor:
    """1 if the score rises when the image is seen only where the map is high, else 0; its mean is the share of images.

    An equal score is no rise.
    """
    behind = scores_behind_maps(images, maps, target_score, mean_color)
    return torch.where(behind.isfinite(), (behind > clean_scores).float(), torch.nan)
