"""Scores of images whose most relevant pixels are imputed (ROAD, Rong et al., arXiv:2202.00449)."""

import torch
from torch import Tensor

from attncompare.metrics._base import Score
from attncompare.metrics.linear_fill import linear_fill
from attncompare.metrics.perturbation import rank_units

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NOISE = 0.01
IMAGES_AT_ONCE = 8
NARROWEST = 16
"""Fewer rows or columns are imputed less well than to 1e-4: 3e-4 was seen of 6 rows, 7e-3 of 1."""
UNDEFINED = f"the image has fewer than {NARROWEST} rows or columns, or the score of an imputed one is not finite"


def imputed_scores(images: Tensor, maps: Tensor, target_score: Score, seed: int) -> Tensor:
    """(B,9) the target's score when the highest 10, 20 ... 90 % of a map's pixels are imputed.

    images: (B,3,H,W). maps: (B,H,W); ties in the order of a seeded permutation. Noise of standard deviation 0.01 (of the
    pixel range [0, 1]), the same for every map, is added to the imputed pixels. NaN for images below NARROWEST.
    """
    if min(maps.shape[1:]) < NARROWEST:
        return torch.full((len(maps), len(SHARES)), torch.nan)
    units = maps[0].numel()
    counts = torch.tensor([round(share * units) for share in SHARES]).reshape(-1, 1)
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images) * NOISE
    found = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        some, valued = (each[start : start + IMAGES_AT_ONCE] for each in (images, maps))
        ranks = torch.stack([rank_units(values.flatten(), seed) for values in valued])
        removed = (ranks[:, None] < counts).reshape(-1, *maps.shape[1:]).to(images.device)
        altered = linear_fill(some.repeat_interleave(len(SHARES), dim=0), removed)
        altered.addcmul_(removed[:, None].to(noise), noise)
        which = torch.arange(start, start + len(some), device=images.device).repeat_interleave(len(SHARES))
        found.append(target_score(altered, which).reshape(-1, len(SHARES)))
    return torch.cat(found).cpu()
