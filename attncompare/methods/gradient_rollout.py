"""Gradient-weighted rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.inspection.layout import TokenLayout
from attncompare.methods._base import method


@method(reference="Chefer et al., arXiv:2103.15679, equations 5 and 6", version=2)
def gradient_rollout(attention: Sequence[Tensor], attention_gradients: Sequence[Tensor], tokens: TokenLayout) -> Tensor:
    """R <- R + A' R over the blocks, with A' the head mean of the positive part of gradient x attention; less the identity.

    Y is the target's logit; rows are not normalized. The read-out is linear, so one row is followed from the last block
    to the first in place of the whole product. The identity in R is left out: it is 0 for every patch where a class token
    is read, and the same for every patch where their mean is, beside which a float32 map would be rounding.
    """
    start = attention[0].new_zeros(len(attention[0]), 1, attention[0].shape[-1])
    start[..., tokens.rows()] = 1 / len(tokens.rows())
    gained = torch.zeros_like(start)
    for weights, gradients in zip(reversed(attention), reversed(attention_gradients), strict=True):
        step = (gradients * weights).relu_().mean(dim=1)
        gained = gained + start @ step + gained @ step
    return tokens.to_grid(gained[:, 0])
