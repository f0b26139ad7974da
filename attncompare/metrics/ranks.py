"""Spearman's correlation of maps."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor


def mean_ranks(maps: Tensor) -> Tensor:
    """(B,H,W) -> (B,HW) float64 ranks, 1 for the smallest; ties take the mean of their places."""
    return torch.from_numpy(np.asarray(rankdata(maps.cpu().flatten(1).numpy(), axis=1), dtype=np.float64))


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """(B,) correlation of the ranks of two maps (B,H,W), in [-1, 1]; NaN where one of them is constant."""
    ranks = [mean_ranks(maps) for maps in (first, second)]
    centered = [one - one.mean(dim=1, keepdim=True) for one in ranks]
    scale = (centered[0].square().sum(1) * centered[1].square().sum(1)).sqrt()
    return torch.where(scale > 0, (centered[0] * centered[1]).sum(1) / scale, torch.nan).clamp(-1, 1).float()
