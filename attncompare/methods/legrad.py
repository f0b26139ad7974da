"""LeGrad."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.inspection.layout import TokenLayout
from attncompare.methods._base import method


@method(reference="Bousselham et al., arXiv:2404.03214, equations 4 to 8")
def legrad(block_gradients: Sequence[Tensor], tokens: TokenLayout) -> Tensor:
    """Positive part of how the score read from each block's tokens answers to that block's attention to each patch.

    Mean over heads, query tokens and blocks; the attention itself is not multiplied in.
    """
    per_block = [gradients.relu().mean(dim=(1, 2)) for gradients in block_gradients]
    return tokens.to_grid(torch.stack(per_block).mean(dim=0))
