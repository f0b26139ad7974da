"""Complexity."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric


@metric(
    better="lower",
    reference="Bhatt et al., arXiv:2005.00631, section 3.3: entropy of |map| / sum |map|, in nats",
    undefined="the map is zero everywhere",
    bounds=(0, float("inf")),
)
def complexity(maps: Tensor) -> Tensor:
    """Entropy of the absolute map as shares of its sum: 0 for a single pixel, ln(H W) when all pixels share alike.

    maps: (B,H,W). Maps must have one size to be compared, so the harness enlarges all of them to the image.

    >>> [round(value, 4) for value in complexity(torch.tensor([[[1.0, 1.0]], [[0.0, 3.0]]])).tolist()]
    [0.6931, 0.0]
    """
    values = maps.double().abs().flatten(1)
    total = values.sum(dim=1, keepdim=True)
    entropy = torch.special.entr(values / total).sum(dim=1).clamp(min=0)
    return torch.where(total[:, 0] > 0, entropy, torch.nan).float()
