"""The tap: a feature layer's output, routed through one module as (B,C,h,w) for every family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.signals import TokenLayout

Layout = Literal["nchw", "nhwc", "tokens"]


def find_layout(shape: torch.Size, size: tuple[int, int], tokens: TokenLayout | None) -> Layout | None:
    """How a module's output lies on an image of that size, or None when it does not.

    A channel axis is told from the spatial axes by the image's aspect ratio, up to one cell of rounding.

    >>> find_layout(torch.Size([1, 7, 7, 768]), (224, 224), None)
    'nhwc'
    """
    if len(shape) == 3:
        return "tokens" if tokens is not None and shape[1] == tokens.length else None

    def on_image(h: int, w: int) -> bool:
        return 1 < h <= size[0] and 1 < w <= size[1] and abs(h * size[1] - w * size[0]) < max(size)

    if len(shape) == 4 and on_image(shape[2], shape[3]):
        return "nchw"
    if len(shape) == 4 and on_image(shape[1], shape[2]):
        return "nhwc"
    return None


class Tap:
    """Hooks a layer so that its features pass through `self.identity` as (B,C,h,w).

    Where nothing below asks for gradients, the features become a leaf: a backward pass ends at the tap and costs no
    memory in the trunk. The layer's consumers receive a copy, so an in-place operation behind the tap (DenseNet's
    ReLU) cannot overwrite what was recorded.
    """

    def __init__(
        self,
        path: str,
        size: tuple[int, int],
        tokens: TokenLayout | None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.path, self.size, self.tokens, self.watch = path, size, tokens, watch
        self.identity = nn.Identity()
        self.features: Tensor | None = None

    def _split(self, x: Tensor) -> Tensor:
        layout = find_layout(x.shape, self.size, self.tokens)
        if layout is None:
            raise CaptureError(
                f"layer {self.path!r} returns shape {tuple(x.shape)}, which does not lie on an image of {self.size}"
                + (f" nor on {self.tokens}" if self.tokens else "")
            )
        if layout == "nchw":
            return x
        return x.permute(0, 3, 1, 2) if layout == "nhwc" else self.tokens.to_grid(x)  # type: ignore[union-attr]

    def _join(self, features: Tensor, x: Tensor) -> Tensor:
        layout = find_layout(x.shape, self.size, self.tokens)
        if layout == "nchw":
            return features.clone()
        if layout == "nhwc":
            return features.permute(0, 2, 3, 1).contiguous()
        assert self.tokens is not None
        return torch.cat([x[:, : self.tokens.prefix], features.flatten(2).transpose(1, 2)], dim=1)

    def __call__(self, module: nn.Module, args: object, output: object) -> object:
        """The forward hook."""
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor):
            raise CaptureError(f"layer {self.path!r} returns {type(first).__name__}, a tensor is needed")
        x = first
        if torch.is_grad_enabled() and not x.requires_grad:
            features = self._split(x).detach().requires_grad_(True)
        else:
            features = self._split(x)
        features = self.identity(features)
        self.features = features
        if self.watch is not None and features.requires_grad:
            features.register_hook(self.watch)
        joined = self._join(features, x)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined


@contextmanager
def tapped(model: nn.Module, tap: Tap) -> Iterator[Tap]:
    """Install a tap for the length of the block."""
    handle = model.get_submodule(tap.path).register_forward_hook(tap)
    try:
        yield tap
    finally:
        handle.remove()
        tap.features = None
