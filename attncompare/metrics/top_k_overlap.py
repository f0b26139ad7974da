"""Overlap of the most relevant pixels of two maps."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric


def membership(maps: Tensor, count: int) -> Tensor:
    """(B,H,W) -> (B,HW) 1 for the `count` largest pixels; pixels that tie at the border share the places left.

    >>> membership(torch.tensor([[[3.0, 1.0, 1.0, 0.0]]]), 2).tolist()
    [[1.0, 0.5, 0.5, 0.0]]
    """
    values = maps.double().flatten(1)
    border = values.topk(count, dim=1).values[:, -1:]
    above, tied = (values > border).double(), (values == border).double()
    return above + tied * (count - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)


@metric(
    better="higher",
    reference="share of the k most relevant pixels that two maps have in common; ties at the border count in part",
    undefined="one of the maps is constant, so it ranks nothing",
    bounds=(0, 1),
    meaning={"share": "share of the pixels that count as the largest"},
    limits={"share": (1e-6, 1)},
)
def top_k_overlap(maps: Tensor, other_maps: Tensor, *, share: float = 0.1) -> Tensor:
    """How many of the k = round(share H W) largest pixels two maps share, divided by k; chance gives `share`.

    maps, other_maps: (B,H,W) of one size. Symmetric; 1 for maps of the same order.

    >>> top_k_overlap(torch.tensor([[[4.0, 3.0, 2.0, 1.0]]]), torch.tensor([[[4.0, 1.0, 3.0, 2.0]]]), share=0.5).item()
    0.5
    """
    count = max(1, round(share * maps[0].numel()))
    overlap = torch.minimum(membership(maps, count), membership(other_maps, count)).sum(1) / count
    constant = [(one.amax(dim=(1, 2)) == one.amin(dim=(1, 2))) for one in (maps, other_maps)]
    return torch.where(constant[0] | constant[1], torch.nan, overlap).float()
