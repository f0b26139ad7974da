"""Attention times gradient of one block."""

from collections.abc import Sequence

from torch import Tensor

from attncompare.errors import SpecError
from attncompare.inspection.layout import TokenLayout
from attncompare.methods._base import method


@method(
    reference="Chefer et al., arXiv:2103.15679, equation 5, read out of one block; Barkan et al., arXiv:2204.11073",
    meaning={"block": "which block, counted from 0; -1 is the last"},
)
def attention_x_gradient(
    attention: Sequence[Tensor], attention_gradients: Sequence[Tensor], tokens: TokenLayout, *, block: int = -1
) -> Tensor:
    """Positive part of gradient times attention of one block, head mean, at the row that the score is read from."""
    if not -len(attention) <= block < len(attention):
        raise SpecError(f"attention_x_gradient.block={block}: the model has blocks 0 to {len(attention) - 1}")
    return tokens.readout((attention_gradients[block] * attention[block]).relu().mean(dim=1))
