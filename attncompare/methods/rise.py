"""RISE."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attncompare.methods._base import method


def random_masks(count: int, size: tuple[int, int], grid: int, p_keep: float, seed: int) -> Iterator[Tensor]:
    """`count` masks (H,W) in [0, 1]: coarse binary grids, enlarged bilinearly and shifted by less than a cell.

    >>> next(random_masks(1, (32, 32), 7, 0.5, seed=0)).shape
    torch.Size([32, 32])
    """
    cell = [-(-side // grid) for side in size]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        coarse = (torch.rand(1, 1, grid, grid, generator=generator) < p_keep).float()
        shift = [int(torch.randint(side, (), generator=generator)) for side in cell]
        large = [(grid + 1) * side for side in cell]
        mask = F.interpolate(coarse, size=large, mode="bilinear", align_corners=False)[0, 0]
        yield mask[shift[0] : shift[0] + size[0], shift[1] : shift[1] + size[1]]


@method(
    reference="Petsiuk et al., arXiv:1806.07421, equation 6 and section 3.2",
    expensive=True,
    passes_option="n_masks",
    meaning={
        "n_masks": "random masks, the same for every image",
        "grid": "cells a side of a mask before it is enlarged",
        "p_keep": "probability that a cell is kept",
        "baseline": "gray level behind a mask, in [0, 1]; the authors' code has the model's mean color",
        "internal_batch_size": "masked copies in one pass",
        "seed": "changes the masks",
    },
    limits={
        "n_masks": (1, 10_000_000), "grid": (1, 1024), "p_keep": (0.001, 1), "baseline": (0, 1),
        "internal_batch_size": (1, 100_000), "seed": (0, 2**62),
    },
)  # fmt: skip
def rise(
    images: Tensor,
    target_score: Callable[[Tensor, Tensor], Tensor],
    *,
    n_masks: int = 2000,
    grid: int = 7,
    p_keep: float = 0.5,
    baseline: float = 0.5,
    internal_batch_size: int = 8,
    seed: int = 0,
) -> Tensor:
    """Mean of random masks, each weighted by the probability of the target behind it, over the share that is kept."""
    height, width = images.shape[2:]
    found = images.new_zeros(len(images), height, width)
    drawn = random_masks(n_masks, (height, width), grid, p_keep, seed)
    for start in range(0, n_masks, internal_batch_size):
        part = torch.stack([next(drawn) for _ in range(min(internal_batch_size, n_masks - start))]).to(images)
        for index in range(len(images)):
            masked = torch.lerp(images.new_tensor(baseline), images[index], part[:, None])
            which = torch.full((len(part),), index, device=images.device)
            found[index] += torch.einsum("n,nhw->hw", target_score(masked, which), part)
    return found / (n_masks * p_keep)
