"""Everything that listens during one pass: put together by the signals that are asked for, taken down after."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from attncompare.capture.attention import AttentionRecorder, WindowRecorder
from attncompare.capture.feature_hook import FeatureHook
from attncompare.errors import UnknownNameError
from attncompare.inspection.structure import SELayer
from attncompare.models.adapter import ModelAdapter, resolve_layer


@dataclass(frozen=True)
class OutputRecorder:
    """Keeps the inputs and outputs of plain modules: gates and what they multiply."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def of_gate(self, model: nn.Module, gate: SELayer) -> Iterator[None]:
        """Listen to a gate and to the layer that it multiplies, for the length of the block."""
        handles = (
            model.get_submodule(gate.layer).register_forward_pre_hook(self.input_hook(gate.layer)),
            model.get_submodule(gate.values).register_forward_hook(self.output_hook(gate.values)),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def output_hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """A forward hook that keeps copies: what comes after may write in place."""

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.outputs[path] = output.detach().clone()

        return keep

    def input_hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A forward pre-hook that keeps a copy of the first input."""

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs[path] = args[0].detach().clone()

        return keep


@dataclass
class Hooks:
    """What signals attach: a feature hook for each layer, one recorder for all attention, one for windows, one for gates.

    layers: of the features, None for the model's own. gates: numbers. down_to_images: whether the graph starts there. kept:
    what a signal's own listener has kept, by block. windows: the recorder of attention inside windows.
    `attention` exists once it is asked for; what it keeps is set on it. All signals that one call of the attention kernel
    serves share that one recorder.
    """

    model: ModelAdapter
    layers: set[str | None] = field(default_factory=set)
    gates: set[int] = field(default_factory=set)
    down_to_images: bool = False
    features: dict[str | None, FeatureHook] = field(default_factory=dict)
    outputs: OutputRecorder = field(default_factory=OutputRecorder)
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
                stack.callback(model.model.get_submodule(path).register_forward_hook(hook).remove)
            for gate in {gate_index(model, number) for number in self.gates}:
                stack.enter_context(self.outputs.of_gate(model.model, model.structure.se_layers[gate]))
            if "attention" in vars(self):  # somebody has asked for it
                stack.enter_context(self.attention.active())
            if self.windows is not None:  # no model supplies both
                stack.enter_context(self.windows.active())
            yield


def layer_of(model: ModelAdapter, layer: str | None) -> str:
    """The module path of a feature layer: the given one, or the model's own."""
    return str(model.structure.feature_layer) if layer is None else resolve_layer(model, layer)


def gate_index(model: ModelAdapter, number: int) -> int:
    """Which of the model's gates a number means, counted from 0; negative ones count from the last."""
    gates = model.structure.se_layers
    if not -len(gates) <= number < len(gates):
        raise UnknownNameError(f"{model.name} has {len(gates)} channel-attention layers; gate {number} is not one")
    return number % len(gates)
