"""DeepLIFT's rescale rule (arXiv:1704.02685, equation 11) for batches of images followed by their baselines."""

import torch
from torch import Tensor

from attncompare.backward.engine import Call, Rules, derivative, one_input, plain
from attncompare.inspection.functions import CLIPPED, GATES, RELU, SMOOTH, spellings

SMALL = 1e-7  # differences below this share of the inputs' size are rounding: the derivative takes the quotient's place


def deep_lift() -> Rules:
    """The rules of activations and max pooling. Linear functions need none; behind others attributions do not add up."""
    table = {RELU | CLIPPED | SMOOTH | GATES: one_input(rescaled), spellings("max_pool2d"): one_input(pooled)}
    return Rules("DeepLIFT's rescale rule", table, otherwise=plain)


def rescaled(call: Call, gradient: Tensor, x: Tensor) -> Tensor:
    """The multiplier of an activation is (f(x) - f(x0)) / (x - x0)."""
    change, close = _difference(x), _close(x)
    return gradient * torch.where(close, derivative(call, x), _difference(call(x)) / torch.where(close, 1, change))


def pooled(call: Call, gradient: Tensor, x: Tensor) -> Tensor:
    """What a window's larger output has over the other goes to the place in the input that made it."""
    with torch.enable_grad():
        source = x.detach().requires_grad_(True)
        output = call(source)
    image, baseline = output.detach().chunk(2)
    larger = torch.maximum(image, baseline)
    surplus = torch.cat([larger - baseline, image - larger])
    parts = torch.autograd.grad(output, source, gradient * surplus, retain_graph=True)[0].chunk(2)
    own = torch.autograd.grad(output, source, gradient)[0]
    close = _close(x)
    return torch.where(close, own, torch.cat([parts[0] + parts[1]] * 2) / torch.where(close, 1, _difference(x)))


def _difference(x: Tensor) -> Tensor:
    """X - x0, for both halves of a batch."""
    image, baseline = x.chunk(2)
    return torch.cat([image - baseline] * 2)


def _close(x: Tensor) -> Tensor:
    """Where an image differs from its baseline by no more than rounding."""
    return _difference(x).abs() <= SMALL * x.abs().amax()
