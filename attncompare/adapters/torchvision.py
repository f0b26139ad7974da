"""torchvision/: every classifier of torchvision.models."""

from typing import Any

from torch import nn

from attncompare.adapters.base import Preprocessing, Source
from attncompare.errors import unknown_name


def squeeze_excitation(channels: int, squeezed: int) -> nn.Module:
    """Torchvision's squeeze-and-excitation layer."""
    from torchvision.ops import SqueezeExcitation

    layer: nn.Module = SqueezeExcitation(channels, squeezed)
    return layer


def names() -> list[str]:
    """All classification model names of torchvision."""
    import torchvision

    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return sorted(listed)


def load(name: str, random: bool) -> Source:
    """Build a torchvision classifier with its default weights, or with seeded random ones."""
    import torch
    from torchvision import models

    if name not in names():
        raise unknown_name("model", f"torchvision/{name}", [f"torchvision/{known}" for known in names()])
    weights: Any = models.get_model_weights(name).DEFAULT
    # GoogLeNet and Inception only then skip an initialisation that takes minutes.
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") and random else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.get_model(name, weights=None if random else weights, **quiet)
        if random:
            _wake_heads(model)
    transform = weights.transforms()
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    preprocessing = Preprocessing(
        size=(crop, crop),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        crop=crop / resize,
    )
    note = "randomly initialised" if random else f"weights {weights}"
    return Source(f"torchvision/{name}", model.eval(), preprocessing, tuple(weights.meta["categories"]), note=note)


def _wake_heads(model: nn.Module) -> None:
    """Give a zero-initialised head (torchvision ViT) random weights: with zeros every gradient would be zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=0.02)
