"""Average drop."""

import torch
from torch import Tensor

from attncompare.metrics._base import Score, metric
from attncompare.metrics.masking import scores_behind_maps


@metric(
    better="lower",
    reference="Chattopadhay et al., arXiv:1710.11063, section 4.1; a share, not percent",
    undefined="the score of the clean image is not positive, or that behind the map not finite",
    bounds=(0, 1),
)
def average_drop(images: Tensor, maps: Tensor, clean_scores: Tensor, target_score: Score, mean_color: Tensor) -> Tensor:
    """Relative loss of score when the image is seen only where the map is high: max(0, Y - O) / Y.

    Y (B,) is the score of the clean image, O that of the image behind its own map (see masking.scores_behind_maps).
    A cosine may be negative behind the map; the loss counts as 1 at most.
    """
    behind = scores_behind_maps(images, maps, target_score, mean_color)
    drop = ((clean_scores - behind) / clean_scores).clamp(0, 1)
    return torch.where(clean_scores > 0, drop, torch.nan)
