"""torchvision/: every classifier of torchvision.models."""

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from attncompare.errors import SpecError, reason_of, unknown_name
from attncompare.models.adapter import ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.state import seeded_weights


def squeeze_excitation(channels: int, squeezed: int) -> nn.Module:
    """Torchvision's squeeze-and-excitation layer."""
    from torchvision.ops import SqueezeExcitation

    layer: nn.Module = SqueezeExcitation(channels, squeezed)
    return layer


def names() -> list[str]:
    """All classification model names of torchvision."""
    from torchvision import models

    return sorted(models.list_models(module=models))


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Build a torchvision classifier with its default weights, or with seeded random ones."""
    from torchvision import models

    if name not in names():
        raise unknown_name("model", f"torchvision/{name}", [f"torchvision/{known}" for known in names()])
    weights: Any = models.get_model_weights(name).DEFAULT
    # GoogLeNet and Inception only then skip an initialization that takes minutes.
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") and random else {}
    with seeded_weights(seed):
        model = models.get_model(name, weights=None if random else weights, **quiet)
        if random:
            _wake_heads(model)
    transform = weights.transforms()
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    # Without weights a ViT is built for 224 pixels, also where its best weights are for more (vit_h_14: 518).
    side = getattr(model, "image_size", crop)
    preprocessing = Preprocessing(
        size=(side, side),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        crop=crop / resize,
    )
    note = "randomly initialized" if random else f"weights {weights}"
    return ModelSource(f"torchvision/{name}", model.eval(), preprocessing, tuple(weights.meta["categories"]), note=note)


def _wake_heads(model: nn.Module) -> None:
    """Give a zero-initialized head (torchvision ViT) random weights: with zeros every gradient would be zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=0.02)


PARTS = {"train": ("train", "trainval"), "val": ("val", "valid", "validation"), "test": ("test",)}


def image_set(name: str, part: str, root: Path, download: bool) -> Any:
    """A part ("train", "val" or "test") of one of torchvision's sets of (picture, class); None where it has no such part.

    Archives are checked against torchvision's own checksums before anything in them is unpickled (CIFAR).
    Raises SpecError where it is not in `root`, or is no set of pictures with a class each.
    """
    from torchvision import datasets

    if name not in datasets.__all__:
        raise unknown_name("torchvision data set", name, datasets.__all__)
    kind = getattr(datasets, name)
    options = inspect.signature(kind).parameters
    more = {"download": download} if "download" in options else {}
    if "train" in options and "split" not in options:
        return None if part == "val" else _opened(kind, root, train=part == "train", **more)
    if "split" not in options:
        raise SpecError(
            f"torchvision:{name} has no training part with a class for every picture; give a folder instead"
        )
    for split in PARTS[part]:
        try:
            return _opened(kind, root, split=split, **more)
        except ValueError:  # a part of another name
            continue
    return None


def _opened(kind: Any, root: Path, **options: Any) -> Any:
    try:
        return kind(root, **options)
    except (RuntimeError, OSError, ImportError) as error:
        hint = "" if options.get("download") else "; give its root, or download = true"
        raise SpecError(f"torchvision:{kind.__name__} is not in {root}{hint}: {reason_of(error)}") from error
