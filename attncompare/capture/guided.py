"""Gradients by guided backpropagation."""

import torch
from torch import Tensor

from attncompare.capture.backward_rules import guided_relu, scores_under
from attncompare.capture.capture import Capture
from attncompare.capture.recorders import Need
from attncompare.capture.targets import CountedForward
from attncompare.models.adapter import ModelAdapter


def guided_gradients(
    adapter: ModelAdapter, images: Tensor, reference: Capture, need: Need
) -> tuple[Tensor, float, float]:
    """(B,3,H,W) gradient of the target score under `guided_relu`, and the passes made."""
    images = images.detach().requires_grad_(True)
    scores = scores_under(guided_relu(), CountedForward(adapter, reference.scored), images)
    score = scores.gather(1, reference.target[:, None]).sum()
    return torch.autograd.grad(score, images)[0], 1.0, 1.0
