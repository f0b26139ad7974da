"""The tap: a feature layer's output, routed through one module as (B,C,h,w) for every family."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.inspection.layout import TokenLayout

Layout = Literal["nchw", "nhwc"] | TokenLayout


def _on_image(h: int, w: int, size: tuple[int, int]) -> bool:
    """Whether a grid has the image's aspect ratio, up to one cell of rounding."""
    return 1 < h <= size[0] and 1 < w <= size[1] and abs(h * size[1] - w * size[0]) < max(size)


def token_grid(length: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The one grid of that many cells with the image's aspect ratio; None where there is none, or a choice.

    >>> token_grid(3136, (224, 224)), token_grid(197, (224, 224))
    ((56, 56), None)
    """
    sides = [(h, length // h) for h in range(2, length // 2 + 1) if length % h == 0]
    fitting = [grid for grid in sides if _on_image(*grid, size)]
    return fitting[0] if len(fitting) == 1 else None


def find_layout(shape: torch.Size, size: tuple[int, int], sequences: Iterable[TokenLayout] = ()) -> Layout | None:
    """How a module's output lies on an image of that size, or None when it does not.

    A channel axis is told from the spatial axes by the image's aspect ratio, a sequence of tokens by its length.

    >>> find_layout(torch.Size([1, 7, 7, 768]), (224, 224))
    'nhwc'
    """
    if len(shape) == 3:
        return next((layout for layout in sequences if layout.length == shape[1]), None)
    if len(shape) == 4 and _on_image(shape[2], shape[3], size):
        return "nchw"
    if len(shape) == 4 and _on_image(shape[1], shape[2], size):
        return "nhwc"
    return None


def split_features(x: Tensor, layout: Layout) -> Tensor:
    """A layer's output -> its features (B,C,h,w)."""
    if isinstance(layout, TokenLayout):
        return layout.to_grid(x)
    return x if layout == "nchw" else x.permute(0, 3, 1, 2)


def join_features(features: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """Features (B,C,h,w) -> an output as `x` is, prefix tokens taken from `x`."""
    if isinstance(layout, TokenLayout):
        return torch.cat([x[:, : layout.prefix], features.flatten(2).transpose(1, 2)], dim=1)
    return features.clone() if layout == "nchw" else features.permute(0, 2, 3, 1).contiguous()


@dataclass
class Tap:
    """Hooks a layer so that its features pass through `self.identity` as (B,C,h,w).

    Where nothing below asks for gradients, the features become a leaf: a backward pass ends at the tap and costs no
    memory in the trunk. The layer's consumers receive a copy, so an in-place operation behind the tap (DenseNet's
    ReLU) cannot overwrite what was recorded. repeat: how many copies of one image's features go on, one per target.
    """

    path: str
    size: tuple[int, int]
    sequences: tuple[TokenLayout, ...] = ()
    watch: Callable[[Tensor], None] | None = None
    repeat: int = 1
    identity: nn.Identity = field(default_factory=nn.Identity)
    features: Tensor | None = None

    def _layout(self, x: Tensor) -> Layout:
        layout = find_layout(x.shape, self.size, self.sequences)
        if layout is None:
            raise CaptureError(
                f"layer {self.path!r} returns shape {tuple(x.shape)}, which does not lie on an image of {self.size}"
                + "".join(f" nor on {sequence}" for sequence in self.sequences)
            )
        return layout

    def __call__(self, module: nn.Module, args: object, output: object) -> object:
        """The forward hook."""
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor):
            raise CaptureError(f"layer {self.path!r} returns {type(first).__name__}, a tensor is needed")
        if self.features is not None:
            raise CaptureError(f"layer {self.path!r} runs several times in a pass; which run is meant is not defined")
        x, layout = first, self._layout(first)
        if self.repeat > 1:
            x = x.expand(self.repeat, *x.shape[1:])
        if torch.is_grad_enabled() and not x.requires_grad:
            features = split_features(x, layout).detach().requires_grad_(True)
        else:
            features = split_features(x, layout)
        features = self.identity(features)
        self.features = features
        if self.watch is not None and features.requires_grad:
            features.register_hook(self.watch)
        joined = join_features(features, x, layout)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined


@contextmanager
def tapped(model: nn.Module, tap: Tap) -> Iterator[Tap]:
    """Install a tap for the length of the block."""

    def forget(module: nn.Module, args: object) -> None:
        tap.features = None

    handles = [model.register_forward_pre_hook(forget), model.get_submodule(tap.path).register_forward_hook(tap)]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
        tap.features = None
