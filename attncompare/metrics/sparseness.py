"""Sparseness."""

import torch
from torch import Tensor

from attncompare.metrics._base import metric


@metric(
    better="higher",
    reference="Chalasani et al., arXiv:1810.06583, section 6: Gini index of |map|",
    undefined="the map is zero everywhere",
    bounds=(0, 1),
)
def sparseness(maps: Tensor) -> Tensor:
    """Gini index of the absolute map: 0 when all pixels share alike, nearly 1 when one pixel has everything.

    maps: (B,H,W). With the d absolute values sorted ascending, sum_i (2 i - d - 1) x_i / (d sum_i x_i), i = 1 ... d.

    >>> sparseness(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])).tolist()
    [0.0, 0.75]
    """
    values = maps.double().abs().flatten(1).sort(dim=1).values
    count = values.shape[1]
    place = torch.arange(1, count + 1, dtype=values.dtype, device=values.device)
    total = values.sum(dim=1)
    gini = ((2 * place - count - 1) * values).sum(dim=1) / (count * total)
    return torch.where(total > 0, gini.clamp(0, 1), torch.nan).float()
