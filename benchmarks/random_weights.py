"""Random weights as the sweep wants them: moved off their initial values, with batch norms that fit what they see."""

import torch
from torch import Tensor, nn


def stir(module: nn.Module, step: float | None = None) -> None:
    """Move every parameter off its initial value: zero heads, unit norms and LayerScale near zero hide mistakes.

    step: standard deviation of what is added; 0.3 of a parameter's own when not given.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value += (_own_step(value) if step is None else step) * torch.randn(value.shape, generator=generator)


def _own_step(value: Tensor) -> float:
    spread = float(value.std()) if value.numel() > 1 else 0.0
    fan_in = value[0].numel() if value.ndim > 1 else 1
    return 0.3 * spread if spread > 1e-4 else float(min(0.1, fan_in**-0.5))


def settle(module: nn.Module, images: Tensor) -> None:
    """Take the statistics of every batch norm from these images: with initial ones deep random nets explode or fade."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    with torch.no_grad():
        if norms:
            module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.training, norm.momentum = False, momentum
