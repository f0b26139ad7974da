"""Infidelity."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from attncompare.metrics._base import Score, metric

SIDES = (1 / 8, 1 / 4, 1 / 2)
"""Sides of the removed squares as shares of the image's sides; each is drawn as often as the others."""


def random_squares(size: tuple[int, int], seed: int) -> Iterator[Tensor]:
    """Endless (H,W) bool masks of one rectangle each, anywhere inside the image."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    while True:
        share = SIDES[draw(len(SIDES))]
        high, wide = (max(1, round(share * length)) for length in size)
        top, left = draw(size[0] - high + 1), draw(size[1] - wide + 1)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[top : top + high, left : left + wide] = True
        yield mask


@metric(
    better="lower",
    reference="Yeh et al., arXiv:1901.09392, definition 2.1 with optimal scaling, square removal; by Captum",
    undefined="the score of an altered image is not finite",
    bounds=(0, float("inf")),
    version=2,
    meaning={"squares": "random rectangles that are removed from each image"},
    limits={"squares": (1, 100_000)},
)
def infidelity(
    images: Tensor, maps: Tensor, target_score: Score, mean_color: Tensor, seed: int, *, squares: int = 64
) -> Tensor:
    """Mean squared difference between the map's sum under a removed square and the score that the square costs.

    Per image: `squares` random rectangles (sides 1/8, 1/4 or 1/2 of the image's, the same for every map) take the mean
    color; a_i is the sum of the map inside rectangle i, d_i = f(x) - f(x without it). The map's unit is free, so it is
    scaled by b = sum a_i d_i / sum a_i^2, and the value is the mean of (b a_i - d_i)^2; a zero map gives that of d_i^2.
    """
    from captum.metrics import infidelity as captum_infidelity

    size = (int(images.shape[2]), int(images.shape[3]))
    masks = torch.stack(list(islice(random_squares(size, seed), squares)))[:, None].to(images.device)

    def remove(copies: Tensor) -> tuple[Tensor, Tensor]:
        return masks.to(copies).expand_as(copies), torch.where(masks, mean_color, copies)

    values = []
    for i in range(len(images)):
        which = torch.tensor([i], device=images.device)
        weights = (maps[i].to(images).double() / images.shape[1]).expand_as(images[i])[None]
        how = {"additional_forward_args": which, "n_perturb_samples": squares, "normalize": True}
        values.append(captum_infidelity(target_score, remove, images[i : i + 1], weights, **how))
    return torch.cat(values).float().cpu()
