"""Class-token attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.inspection.layout import TokenLayout
from attncompare.methods._base import method


@method(
    reference="Caron et al., arXiv:2104.14294, figure 1",
    class_sensitive=False,
    meaning={
        "block": "which block, counted from 0; -1 is the last",
        "head": "which head; the mean over heads when not given",
    },
)
def class_attention(
    class_attention: Sequence[Tensor], tokens: TokenLayout, *, block: int = -1, head: int | None = None
) -> Tensor:
    """Attention of the class token to the patches; the mean over patch queries in models that average their tokens."""
    if not -len(class_attention) <= block < len(class_attention):
        raise SpecError(f"class_attention.block={block}: the model has blocks 0 to {len(class_attention) - 1}")
    rows = class_attention[block]
    if head is None:
        return tokens.to_grid(rows.mean(dim=1))
    if not 0 <= head < rows.shape[1]:
        raise SpecError(f"class_attention.head={head}: block {block} has heads 0 to {rows.shape[1] - 1}")
    return tokens.to_grid(torch.select(rows, 1, head))
