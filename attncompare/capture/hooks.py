"""Everything that listens during one pass: put together by the signals that are asked for, taken down after."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property

from torch import Tensor

from attncompare.capture.features import Tap
from attncompare.capture.recorders import AttentionRecorder, OutputRecorder, WindowRecorder
from attncompare.errors import UnknownNameError
from attncompare.models.adapter import ModelAdapter


@dataclass
class Hooks:
    """What signals attach: a tap for each layer, one recorder for all attention, one for windows, one for gates.

    layers: of the features, None for the model's own. gates: numbers. down_to_images: whether the graph starts there. kept:
    what a signal's own listener has kept, by block. windows: the recorder of attention inside windows.
    `attention` exists once it is asked for; what it keeps is set on it. All signals that one call of the attention kernel
    serves share that one recorder.
    """

    model: ModelAdapter
    layers: set[str | None] = field(default_factory=set)
    gates: set[int] = field(default_factory=set)
    down_to_images: bool = False
    taps: dict[str | None, Tap] = field(default_factory=dict)
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
        taps = {path: Tap(path, model.size, model.token_layouts) for path in paths.values()}
        self.taps = {layer: taps[path] for layer, path in paths.items()}
        with ExitStack() as stack:
            for path, tap in taps.items():
                stack.callback(model.model.get_submodule(path).register_forward_hook(tap).remove)
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


def resolve_layer(model: ModelAdapter, path: str) -> str:
    """Check that a module path exists in the model."""
    try:
        model.model.get_submodule(path)
        known = path != ""
    except AttributeError:
        known = False
    if not known:
        names = {name for name, _ in model.model.named_modules() if name}
        near = get_close_matches(path, names, n=3) or sorted(model.structure.stages)
        raise UnknownNameError(f"{model.name} has no layer {path!r}; did you mean {', '.join(near)}?")
    return path


def gate_index(model: ModelAdapter, number: int) -> int:
    """Which of the model's gates a number means, counted from 0; negative ones count from the last."""
    gates = model.structure.se_layers
    if not -len(gates) <= number < len(gates):
        raise UnknownNameError(f"{model.name} has {len(gates)} channel-attention layers; gate {number} is not one")
    return number % len(gates)
