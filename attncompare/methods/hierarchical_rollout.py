"""Rollout across windows, shifts and changes of resolution."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.inspection.layout import WindowAttention
from attncompare.methods._base import method


@method(
    reference="this project's extension of Abnar and Zuidema, arXiv:2005.00928, to windowed and multi-scale attention",
    class_sensitive=False,
)
def hierarchical_rollout(attention_hierarchy: Sequence[WindowAttention]) -> Tensor:
    """Head-mean attention and the residual path, followed from the mean over the last grid back to the first.

    As in attention_rollout each block contributes (A + I) / 2, with A block-diagonal over its windows; a block that
    reduces its own resolution has no residual and contributes A. Between grids (patch merging, strided convolutions) a
    coarse cell is taken as the mean of the fine cells it covers. Convolutions in between are taken to keep positions.
    """
    last = attention_hierarchy[-1]
    h, w = last.geometry.query_grid
    flow = torch.full((len(last.values), h, w), 1 / (h * w), dtype=last.values.dtype, device=last.values.device)
    for block in reversed(attention_hierarchy):
        flow = _onto(flow, block.geometry.query_grid)
        moved = block.scatter(torch.einsum("bwq,bwqk->bwk", block.gather(flow), block.weights()))
        flow = (moved + flow) / 2 if block.geometry.query_grid == block.geometry.grid else moved
    return flow


def _onto(flow: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,h',w') -> (B,h,w): the weight of each coarse cell, spread evenly over the fine cells whose mean it is."""
    rows, columns = (_cover(a, b).to(flow) for a, b in zip(flow.shape[1:], grid, strict=True))
    return torch.einsum("bij,iy,jx->byx", flow, rows, columns)


def _cover(coarse: int, fine: int) -> Tensor:
    """(coarse, fine) share of each fine cell in the coarse cells along one axis; rows sum to 1."""
    if coarse == fine:
        return torch.eye(fine)
    edges = torch.arange(coarse + 1) * fine / coarse
    cells = torch.arange(fine)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    overlap = overlap.clamp_min(0)
    return overlap / overlap.sum(dim=1, keepdim=True)
