"""Transformer attribution by relevance propagation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.inspection.layout import TokenLayout
from attncompare.methods._base import method


@method(reference="Chefer et al., arXiv:2012.09838, equations 3 to 15")
def transformer_lrp(
    attention_relevance: Sequence[Tensor], attention_gradients: Sequence[Tensor], tokens: TokenLayout
) -> Tensor:
    """Product over the blocks of I + head mean of the positive part of gradient times relevance of the attention.

    The relevance comes down by the rules in `backward.transformer_lrp`, from 1 at a class's logit; a target that is a
    function of the outputs, or a cosine, starts with output x gradient, so a function that picks a class has another map.
    Rows are not normalized. The identity in the whole product is left out: it is the same for every patch, and beside it a
    float32 map would be rounding.
    """
    flow = torch.zeros_like(attention_relevance[0][:, 0])
    for relevance, gradients in zip(attention_relevance, attention_gradients, strict=True):
        step = (gradients * relevance).relu().mean(dim=1)
        flow = flow + step + step @ flow
    return tokens.readout(flow)
