"""The models of the coverage sweep: built with seeded weights, stirred, opened as a user opens them, with references.

A reference is what the model's own library computes for the same images: the logits, and attention where it returns any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from random_weights import settle, stir
from torch import Tensor, nn

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.models.adapter import ModelAdapter, ModelSource
from attncompare.models.load import _adapt
from attncompare.models.sources import timm as timm_source
from attncompare.models.sources import torchvision as torchvision_source
from attncompare.models.sources.patches import KINDS as PATCHED
from attncompare.models.sources.patches import patch_side, read_images
from attncompare.signals._base import request


@dataclass(frozen=True)
class Case:
    """One model of the sweep. file: where its library keeps it, a timm model file or a transformers model type."""

    library: str
    name: str
    file: str

    @property
    def key(self) -> str:
        """What `--only` is matched with."""
        return f"{self.library}/{self.name}"


def smooth_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count,3,H,W) in [0, 1]: random colors at three scales, so that no region is flat and none is mere noise."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, *size)
    for cells in (4, 12, 36):
        noise = torch.rand(count, 3, cells, cells, generator=generator)
        total = total + F.interpolate(noise, size=size, mode="bilinear", align_corners=False)
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    return (total - low) / (high - low)


def prepared(source: ModelSource) -> ModelSource:
    """The source with its model stirred and settled."""
    stir(source.module)
    settle(source.module, (smooth_images(4, source.preprocessing.size, seed=7) - 0.5) / 0.25)
    return source


@dataclass
class Subject:
    """A model that was opened, with what its own library computes for the images: the logits, and attention if any.

    reference: the weights of these blocks, or of all that the library returns.
    """

    adapter: ModelAdapter
    images: Tensor
    bare_logits: Tensor
    reference: Callable[[Subject, Sequence[str]], list[Tensor]]

    @cached_property
    def features(self) -> Tensor:
        """(B,C,h,w) of the clean images."""
        found: Tensor = self.record("features")
        return found

    @cached_property
    def logits(self) -> Tensor:
        """(B,K) of the clean images."""
        with torch.no_grad():
            return self.adapter.forward(self.images)

    def record(self, signal: str, images: Tensor | None = None, **options: object) -> Any:
        """One signal of one capture."""
        need = request(signal, **options)
        return record(self.adapter, self.images if images is None else images, [need]).signals[need]


def open_case(case: Case, folder: str) -> Subject:
    """Build, stir and probe a model."""
    return {"timm": _open_timm, "torchvision": _open_torchvision, "transformers": _open_transformers}[case.library](
        case, folder
    )


def _logits(source: ModelSource, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What the model returns outside of this library for images that torchvision normalized."""
    from torchvision.transforms.functional import normalize

    with torch.no_grad():
        normalized = normalize(images, list(mean), list(std))
        return source.output_fn(source.module(normalized.flip(1) if source.preprocessing.bgr else normalized))


def _open_timm(case: Case, folder: str) -> Subject:
    from timm.data import resolve_model_data_config

    source = prepared(timm_source.load(case.name, random=True))
    images = smooth_images(2, source.preprocessing.size)
    config = resolve_model_data_config(source.module)
    bare = _logits(source, images, config["mean"], config["std"])
    return Subject(_adapt(source, "cpu"), images, bare, _timm_attention)


def _open_torchvision(case: Case, folder: str) -> Subject:
    from torchvision.models import get_model_weights

    source = prepared(torchvision_source.load(case.name, random=True))
    images = smooth_images(2, source.preprocessing.size)
    transform = get_model_weights(case.name).DEFAULT.transforms()
    bare = _logits(source, images, transform.mean, transform.std)
    return Subject(_adapt(source, "cpu"), images, bare, _torchvision_attention)


def _open_transformers(case: Case, folder: str) -> Subject:
    """A tiny model, which comes stirred and settled, from the folder that a user would have."""
    from tiny_transformers import BACKBONES, CLASSIFIERS, DUALS, save

    from attncompare.models.sources import huggingface

    built = {**CLASSIFIERS, **BACKBONES, **DUALS}[case.name]()
    save(built, Path(folder))
    source = huggingface.load(folder, random=False)
    images = smooth_images(2, source.preprocessing.size)
    bare = _logits(source, images, source.preprocessing.mean, source.preprocessing.std)

    def attention(subject: Subject, paths: Sequence[str]) -> list[Tensor]:
        eager: Any = type(built).from_pretrained(folder, attn_implementation="eager").eval()
        encoder = eager.vision_model if hasattr(eager, "get_image_features") else eager
        if eager.config.model_type in PATCHED:
            encoder = partial(read_images, encoder, patch_side(eager.config))
        found = encoder(pixel_values=normalized(subject), output_attentions=True).attentions
        return [block for block in found if isinstance(block, Tensor)]

    return Subject(ac.load_model(f"hf/{folder}"), images, bare, attention)


# Attention as the libraries themselves return it


def normalized(subject: Subject) -> Tensor:
    """The images as the model itself takes them."""
    wanted = subject.adapter.source.preprocessing
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (wanted.mean, wanted.std))
    images = (subject.images - mean) / std
    return images.flip(1) if wanted.bgr else images


def _timm_attention(subject: Subject, paths: Sequence[str]) -> list[Tensor]:
    """What goes through the dropout of each attention block once the fused kernels are switched off."""
    model: Any = subject.adapter.module
    drops = [model.get_submodule(f"{block}.attn_drop") for block in paths]
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    found: list[Tensor] = []
    handles = [drop.register_forward_hook(lambda module, args, output: found.append(output)) for drop in drops]
    for module in fused:
        module.fused_attn = False
    model(normalized(subject))
    for module in fused:
        module.fused_attn = True
    for handle in handles:
        handle.remove()
    return found


def _torchvision_attention(subject: Subject, paths: Sequence[str]) -> list[Tensor]:
    """What nn.MultiheadAttention returns when it is asked for weights."""
    model: Any = subject.adapter.module
    found: list[Tensor] = []

    def ask(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "need_weights": True, "average_attn_weights": False}

    layers = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    handles = [layer.register_forward_pre_hook(ask, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(lambda m, args, output: found.append(output[1])) for layer in layers]
    model(normalized(subject))
    for handle in handles:
        handle.remove()
    return found


def matched(subject: Subject, found: list[Tensor], expected: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Recorded and expected weights of the same blocks; none when it is open which belong together."""
    windows = subject.adapter.structure.windows
    if not windows:
        sides = [block.shape[-1] for block in expected]  # without the place of a pooling query before the tokens
        found = [block[..., -side:, -side:] for block, side in zip(found, sides, strict=False)]
        alike = [a.shape == b.shape for a, b in zip(found, expected, strict=False)]
        return list(zip(found, expected, strict=True)) if all(alike) and len(found) == len(expected) else []
    chosen = list(range(len(windows)))
    if len(expected) < len(windows):  # Swin returns the last block of each stage
        chosen = sorted({block.geometry.grid: i for i, block in enumerate(windows)}.values())
    if len(expected) != len(chosen):
        return []
    if any(values.numel() != found[i].numel() for i, values in zip(chosen, expected, strict=True)):
        return []
    pairs = zip(chosen, expected, strict=True)
    return [(found[i], windows[i].split(values).reshape(found[i].shape)) for i, values in pairs]


def depth_of(subject: Subject) -> float:
    """The share of the trunk's parameters that has run once the feature layer is done: low for a stem or patch layer.

    Layers that return (B,K) or (B,K,1,1) are heads and squeezes, not trunk.
    """
    model, path = subject.adapter.module, str(subject.adapter.structure.feature_layer)
    ran, reached = dict[nn.Module, int](), [0]

    def count(layer: nn.Module, args: object, output: object) -> None:
        if not isinstance(output, Tensor) or (max(output.shape[1:-1], default=1) > 1 and max(output.shape[2:]) > 1):
            ran[layer] = sum(value.numel() for value in layer.parameters(recurse=False))

    handles = [layer.register_forward_hook(count) for name, layer in model.named_modules() if name]
    handles.append(model.get_submodule(path).register_forward_hook(lambda *_: reached.append(sum(ran.values()))))
    with torch.no_grad():
        model(normalized(subject))
    for handle in handles:
        handle.remove()
    return reached[-1] / max(sum(ran.values()), 1)
