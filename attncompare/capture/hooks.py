"""Everything that listens during one pass: put together by the signals that are asked for, taken down after."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attncompare.capture.attention import AttentionRecorder, WindowRecorder
from attncompare.capture.feature_hook import FeatureHook
from attncompare.errors import UnknownNameError
from attncompare.inspection.structure import SELayer
from attncompare.models.adapter import ModelAdapter, resolve_layer

End = Literal["input", "output"]


@dataclass
class Hooks:
    """What signals attach: a feature hook for each layer, recorders of attention, hooks on single modules.

    layers: of the features, None for the model's own. ends: modules of which the first input or the output is kept; after
    the pass, in `tensors`. down_to_images: whether the graph starts there. kept: what a signal's own listener has kept, by
    block. windows: the recorder of attention inside windows.
    `attention` exists once it is asked for; what it keeps is set on it. All signals that one call of the attention kernel
    serves share that one recorder.
    """

    model: ModelAdapter
    layers: set[str | None] = field(default_factory=set)
    ends: set[tuple[str, End]] = field(default_factory=set)
    down_to_images: bool = False
    features: dict[str | None, FeatureHook] = field(default_factory=dict)
    tensors: dict[tuple[str, End], Tensor] = field(default_factory=dict)
    windows: WindowRecorder | None = None
    kept: dict[object, dict[int, Tensor]] = field(default_factory=dict)

    @cached_property
    def attention(self) -> AttentionRecorder:
        """The recorder of the attention over tokens."""
        return AttentionRecorder(self.model)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """All of it listens inside the `with` statement."""
        model, paths = self.model, {layer: layer_of(self.model, layer) for layer in self.layers}
        hooks = {path: FeatureHook(path, model.size, model.token_layouts) for path in paths.values()}
        self.features = {layer: hooks[path] for layer, path in paths.items()}
        with ExitStack() as stack:
            for path, hook in hooks.items():
                stack.callback(model.module.get_submodule(path).register_forward_hook(hook).remove)
            for path, end in self.ends:
                stack.callback(self._keep(path, end).remove)
            if "attention" in vars(self):  # somebody has asked for it
                stack.enter_context(self.attention.active())
            if self.windows is not None:  # no model supplies both
                stack.enter_context(self.windows.active())
            yield

    def _keep(self, path: str, end: End) -> RemovableHandle:
        """Keep a copy of what goes into or comes out of a module: what comes after may write in place."""

        def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.tensors[path, end] = args[0].detach().clone()

        def keep_output(module: nn.Module, args: object, output: Tensor) -> None:
            self.tensors[path, end] = output.detach().clone()

        module = self.model.module.get_submodule(path)
        if end == "input":
            return module.register_forward_pre_hook(keep_input)
        return module.register_forward_hook(keep_output)


def layer_of(model: ModelAdapter, layer: str | None) -> str:
    """The module path of a feature layer: the given one, or the model's own."""
    return str(model.structure.feature_layer) if layer is None else resolve_layer(model, layer)


def se_layer_of(model: ModelAdapter, number: int) -> SELayer:
    """The channel-attention layer of that number, counted from 0; negative numbers count from the last."""
    layers = model.structure.se_layers
    if not -len(layers) <= number < len(layers):
        raise UnknownNameError(f"{model.name} has {len(layers)} channel-attention layers; gate {number} is not one")
    return layers[number]
