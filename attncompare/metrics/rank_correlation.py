"""Rank correlation of two maps."""

from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.ranks import spearman


@metric(
    better="higher",
    reference="Spearman's rank correlation over all pixels, ties at their mean rank",
    undefined="one of the maps is constant, so it ranks nothing",
    bounds=(-1, 1),
)
def rank_correlation(maps: Tensor, other_maps: Tensor) -> Tensor:
    """Whether two maps order the pixels alike: 1 for the same order, 0 for no relation, -1 for the opposite order.

    maps, other_maps: (B,H,W) of one size. Symmetric.

    >>> import torch
    >>> rank_correlation(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[10.0, 20.0, 900.0]]])).item()
    1.0
    """
    return spearman(maps, other_maps)
