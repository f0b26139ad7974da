"""Attention rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.inspection.layout import TokenLayout
from attncompare.methods._base import method


@method(
    reference="Abnar & Zuidema, arXiv:2005.00928, equation 1",
    class_sensitive=False,
    meaning={"discard_ratio": "share of the smallest attention values set to 0 in each block; the paper's is 0"},
    limits={"discard_ratio": (0, 0.999)},
)
def attention_rollout(fused_attention: Sequence[Tensor], tokens: TokenLayout, *, discard_ratio: float = 0.0) -> Tensor:
    """Product over the blocks of (A + I) / 2: how much of each patch reaches the row that the score is read from.

    Rows are renormalized, which changes nothing for the paper's mean over heads and keeps the flow a distribution when
    heads are fused by max or min, or small values are discarded (per image; the class column is never discarded).

    The read-out is linear, so one row is followed from the last block to the first in place of the whole product.
    """
    flow = fused_attention[0].new_zeros(len(fused_attention[0]), 1, fused_attention[0].shape[-1])
    flow[..., tokens.rows()] = 1 / len(tokens.rows())
    for attention in reversed(fused_attention):
        kept = _without_smallest(attention, discard_ratio, tokens.prefix) if discard_ratio else attention
        total = kept.sum(dim=-1)[:, None]
        shares = torch.where(total > 0, flow / total, 0)
        # A row that lost everything keeps its own flow.
        flow = (shares @ kept + torch.where(total > 0, 0, flow) + flow) / 2
    return tokens.to_grid(flow[:, 0])


def _without_smallest(attention: Tensor, share: float, prefix: int) -> Tensor:
    """(B,N,N) with the smallest `share` of each image's patch columns' values set to 0."""
    patches = attention[:, :, prefix:]
    drop = int(share * patches[0].numel())
    if drop == 0:
        return attention
    threshold = patches.flatten(1).kthvalue(drop, dim=1).values[:, None, None]
    return torch.cat([attention[:, :, :prefix], patches * (patches > threshold)], dim=2)
