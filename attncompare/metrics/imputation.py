"""Scores of images whose most relevant pixels are imputed (ROAD, Rong et al., arXiv:2202.00449)."""

import torch
from torch import Tensor

from attncompare.metrics._base import Score
from attncompare.metrics.linear_fill import linear_fill
from attncompare.metrics.perturbation import rank_units

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NOISE = 0.01
IMAGES_AT_ONCE = 8
FILLS_AT_ONCE_ON_CPU = 3
"""So many stay in its caches; a GPU takes all of them."""


def _fill(images: Tensor, removed: Tensor) -> Tensor:
    """linear_fill of as many images at a time as suits the device."""
    at_once = FILLS_AT_ONCE_ON_CPU if images.device.type == "cpu" else len(images)
    parts = zip(torch.split(images, at_once), torch.split(removed, at_once), strict=True)
    return torch.cat([linear_fill(some, gone) for some, gone in parts])


def imputed_scores(images: Tensor, maps: Tensor, target_score: Score, seed: int) -> Tensor:
    """(B,9) the target's score when the highest 10, 20 ... 90 % of a map's pixels are imputed.

    images: (B,3,H,W). maps: (B,H,W); ties in the order of a seeded permutation. Noise of standard deviation 0.01 (of the
    pixel range [0, 1]), the same for every map, is added to the imputed pixels.
    """
    units = maps[0].numel()
    counts = torch.tensor([round(share * units) for share in SHARES]).reshape(-1, 1)
    found = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        altered = []
        for image, values in zip(images[start:][:IMAGES_AT_ONCE], maps[start:][:IMAGES_AT_ONCE], strict=True):
            ranks = rank_units(values.flatten(), seed)
            removed = (ranks < counts).reshape(len(SHARES), *values.shape).to(image.device)
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)).to(image) * NOISE
            altered.append(_fill(image.expand(len(SHARES), -1, -1, -1), removed) + noise * removed[:, None])
        which = torch.arange(start, start + len(altered), device=images.device).repeat_interleave(len(SHARES))
        found.append(target_score(torch.cat(altered), which).reshape(-1, len(SHARES)))
    return torch.cat(found).cpu()
