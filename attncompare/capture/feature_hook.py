"""The feature hook: a feature layer's output, routed through one module as (B,C,h,w) for every family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.inspection.layout import Layout, TokenLayout, find_layout, join_features, split_features


@dataclass
class FeatureHook:
    """Hooks a layer so that its features pass through `self.identity` as (B,C,h,w).

    Where nothing below asks for gradients, the features become a leaf: a backward pass ends at the hook and costs no
    memory in the trunk. The layer's consumers receive a copy, so an in-place operation behind the hook (DenseNet's
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
def hooked(model: nn.Module, hook: FeatureHook) -> Iterator[FeatureHook]:
    """Install a feature hook for the length of the block."""

    def forget(module: nn.Module, args: object) -> None:
        hook.features = None

    handles = [model.register_forward_pre_hook(forget), model.get_submodule(hook.path).register_forward_hook(hook)]
    try:
        yield hook
    finally:
        for handle in handles:
            handle.remove()
        hook.features = None
