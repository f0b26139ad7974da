"""Signals that come from passes whose forward or backward rules are not the model's own."""

import torch
from torch import Tensor

from attncompare.capture.ablation import LINEAR_HEAD, ablated_scores, has_linear_head
from attncompare.capture.block_scores import block_gradients
from attncompare.capture.capture import Capture
from attncompare.capture.guided import guided_gradients
from attncompare.capture.recorders import Need
from attncompare.capture.relevance import attention_relevance
from attncompare.capture.targets import Target
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import Signal

PASSES = {
    Signal.ABLATED_SCORES: ablated_scores,
    Signal.BLOCK_GRADIENTS: block_gradients,
    Signal.GUIDED_GRADIENTS: guided_gradients,
    Signal.ATTENTION_RELEVANCE: attention_relevance,
}


def prerequisites(adapter: ModelAdapter, need: Need, target: Target) -> tuple[Need, ...]:
    """What an altered signal takes from the shared pass."""
    if need.signal is Signal.ATTENTION_RELEVANCE:
        return (Need(Signal.SCORES),)
    linear = need.signal is Signal.ABLATED_SCORES and not callable(target) and has_linear_head(adapter, need)
    return LINEAR_HEAD if linear else ()


def altered(adapter: ModelAdapter, images: Tensor, reference: Capture, need: Need) -> tuple[object, float, float]:
    """The signal, and the forward and backward passes per image that were made for it."""
    value, forward, backward = PASSES[need.signal](adapter, images, reference, need)
    if need.signal is not Signal.ABLATED_SCORES:
        parts = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, Tensor)]
        silent = sum(part.abs().flatten(1).sum(1) for part in parts) == 0
        if bool(torch.as_tensor(silent).any()):
            raise CaptureError(f"{need.signal} of {adapter.name} are zero for an image; the map would show nothing")
    return value, forward, backward
