"""Guided backpropagation (arXiv:1412.6806): a ReLU passes back only what is positive, where its input was."""

from torch import Tensor

from attncompare.backward.engine import Call, Rules, derivative, one_input, plain
from attncompare.inspection.functions import CLIPPED, RELU


def guided() -> Rules:
    """The rule of ReLUs, clipped ones included; every other function has its own gradient."""
    return Rules("guided backpropagation", {RELU | CLIPPED: one_input(positive)}, otherwise=plain)


def positive(call: Call, gradient: Tensor, x: Tensor) -> Tensor:
    """The positive part of the gradient, where the ReLU is open."""
    return gradient.clamp(min=0) * derivative(call, x)
