"""Attention inside windows, put back on the image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.inspection.layout import WindowAttention
from attncompare.methods._base import method


@method(
    reference="Liu et al., arXiv:2103.14030, section 3.2 (the windows); the map is the mean over queries",
    class_sensitive=False,
    meaning={
        "block": "which block, counted from 0; -1 is the last",
        "head": "which head; the mean over heads when not given",
    },
)
def window_attention(
    window_attention: Sequence[WindowAttention], *, block: int = -1, head: int | None = None
) -> Tensor:
    """Attention that each position of one block receives, mean over the queries of its window, shifts undone.

    A position that gets as much as its neighbors in the window has the value 1 / (keys in the window).
    """
    if not -len(window_attention) <= block < len(window_attention):
        raise SpecError(f"window_attention.block={block}: the model has blocks 0 to {len(window_attention) - 1}")
    chosen = window_attention[block]
    heads = chosen.values.shape[2]
    if head is not None and not 0 <= head < heads:
        raise SpecError(f"window_attention.head={head}: block {block} has heads 0 to {heads - 1}")
    weights = chosen.weights(head)
    queries = (chosen.geometry.queries >= 0).to(weights).sum(dim=1)[:, None]
    windows = chosen.scatter(
        torch.ones_like(weights[:, :, 0])
    )  # that a position lies in; more than 1 where they overlap
    return chosen.scatter(weights.sum(dim=2) / queries.clamp_min(1)) / windows.clamp_min(1)
