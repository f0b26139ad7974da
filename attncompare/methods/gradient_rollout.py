"""Gradient-weighted rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.methods._base import method
from attncompare.signals import TokenLayout


@method(reference="Chefer et al., arXiv:2103.15679, equations 5 and 6")
def gradient_rollout(attention: Sequence[Tensor], attention_gradients: Sequence[Tensor], tokens: TokenLayout) -> Tensor:
    """R <- R + A' R over the blocks, with A' the head mean of the positive part of gradient times attention.

    Y is the target's logit; rows are not normalised.
    """
    count = attention[0].shape[-1]
    relevance = torch.eye(count, dtype=attention[0].dtype, device=attention[0].device).expand(len(attention[0]), -1, -1)
    for weights, gradients in zip(attention, attention_gradients, strict=True):
        relevance = relevance + (gradients * weights).relu().mean(dim=1) @ relevance
    return tokens.readout(relevance)
