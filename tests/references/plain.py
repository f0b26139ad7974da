"""A model of the package as a plain float64 module, and the features of one of its layers."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """A float64 copy of a model: images in [0, 1] -> logits."""

    def __init__(self, adapter):
        super().__init__()
        self.module = copy.deepcopy(adapter.module).double().eval().requires_grad_(False)
        given = adapter.source.preprocessing
        self.mean = torch.tensor(given.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
        self.std = torch.tensor(given.std, dtype=torch.float64).reshape(1, 3, 1, 1)

    def normalized(self, images: Tensor) -> Tensor:
        return (images.double() - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        output = self.module(self.normalized(images))
        return getattr(output, "logits", output)

    def score(self, images: Tensor, target: Tensor) -> Tensor:
        """(B,) logit of each image's target."""
        return torch.stack([row[int(index)] for row, index in zip(self(images), target, strict=True)])

    def probability(self, images: Tensor, index: int) -> Tensor:
        return self(images).softmax(dim=1)[:, index]


@dataclass
class Layer:
    """What a layer returned: its own output, and the same as (B,C,h,w)."""

    output: Tensor
    grid: Tensor


def to_grid(x: Tensor, prefix: int, height: int, width: int) -> Tensor:
    """(B,N,C) tokens -> (B,C,h,w), cell by cell."""
    cells = [[x[:, prefix + row * width + column] for column in range(width)] for row in range(height)]
    return torch.stack([torch.stack(row, dim=-1) for row in cells], dim=-2)


def on_image(adapter, x: Tensor) -> Tensor:
    """A layer's output as (B,C,h,w): tokens by the model's prefix and grid, NHWC where the model's stages are."""
    if x.ndim == 3:
        return to_grid(x, adapter.tokens.prefix, *adapter.tokens.grid)
    return x.permute(0, 3, 1, 2) if adapter.family == "hierarchical" else x


def layer_and_score(adapter, plain: Plain, images: Tensor, target: Tensor, path: str | None = None):
    """What the feature layer returns, still in the graph of the (B,) scores."""
    with kept_output(plain.module.get_submodule(path or adapter.structure.feature_layer)) as kept:
        score = plain.score(images.double().requires_grad_(True), target)
    return kept[0], score


@contextmanager
def kept_output(layer: nn.Module):
    """A list that gets what the layer returns; those behind it get a copy, which they may overwrite in place."""
    kept = []
    hook = layer.register_forward_hook(lambda module, args, output: kept.append(output.clone()) or kept[-1].clone())
    try:
        yield kept
    finally:
        hook.remove()


def features_and_gradients(adapter, images: Tensor, target: Tensor, path: str | None = None) -> tuple[Tensor, Tensor]:
    """(B,C,h,w) features and gradients of the target's logit."""
    plain = Plain(adapter)
    output, score = layer_and_score(adapter, plain, images, target, path)
    gradient = torch.autograd.grad(score.sum(), output)[0]
    return on_image(adapter, output.detach()), on_image(adapter, gradient)


def enlarged(x: Tensor, height: int, width: int, corners: bool = False) -> Tensor:
    """(h,w) -> (H,W) bilinearly, pixel by pixel; `corners`: whether the corner pixels' centers are kept in place."""
    h, w = x.shape

    def places(old, new):
        if corners:
            at = torch.arange(new, dtype=torch.float64) * ((old - 1) / (new - 1))
        else:
            at = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
        at = at.clamp(0, old - 1)
        low = at.floor().long().clamp(max=old - 1)
        return low, (low + 1).clamp(max=old - 1), at - low

    top, bottom, down = places(h, height)
    left, right, across = places(w, width)
    upper = x[top][:, left] * (1 - across) + x[top][:, right] * across
    lower = x[bottom][:, left] * (1 - across) + x[bottom][:, right] * across
    return upper * (1 - down)[:, None] + lower * down[:, None]
