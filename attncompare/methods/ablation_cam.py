"""Ablation-CAM."""

import torch
from torch import Tensor

from attncompare.methods._base import method


@method(reference="Desai & Ramaswamy, WACV 2020, equations 3 and 4")
def ablation_cam(features: Tensor, ablated_scores: Tensor, scores: Tensor, target: Tensor) -> Tensor:
    """ReLU of the channel sum of the features, each channel weighted by the share of the score lost without it.

    The share is of the score's absolute value: divided by a negative logit, as the formula is usually implemented, the
    map would show what speaks against the target.
    """
    score = scores.gather(1, target[:, None])
    weights = (score - ablated_scores) / score.abs()
    return torch.einsum("bc,bchw->bhw", weights, features).relu()
