"""Everything that listens during one shared pass, set up from what is asked for and taken down after."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.attention import AttentionCalls, current_block
from attncompare.capture.features import Tap, tapped
from attncompare.capture.recorders import AttentionRecorder, Need, OutputRecorder, WindowRecorder
from attncompare.capture.state import disable_mha_fastpath
from attncompare.errors import CaptureError, UnknownNameError
from attncompare.signals import Signal

ATTENTION_SIGNALS = frozenset(
    {Signal.ATTENTION, Signal.ATTENTION_GRADIENTS, Signal.FUSED_ATTENTION, Signal.CLASS_ATTENTION}
)
WINDOW_SIGNALS = frozenset({Signal.WINDOW_ATTENTION, Signal.ATTENTION_HIERARCHY})


@dataclass(frozen=True)
class Recorders:
    """Everything that listens during one shared pass."""

    taps: Mapping[str, Tap]
    outputs: OutputRecorder
    attention: AttentionRecorder
    windows: WindowRecorder
    logits: Tensor | None = None


def layer_of(adapter: ModelAdapter, need: Need) -> str:
    """The module path of a need's feature layer."""
    path = need.option("layer") or adapter.anatomy.feature_layer
    return resolve_layer(adapter, str(path))


def resolve_layer(adapter: ModelAdapter, path: str) -> str:
    """Check that a module path exists in the model."""
    try:
        adapter.model.get_submodule(path)
        known = path != ""
    except AttributeError:
        known = False
    if not known:
        names = {name for name, _ in adapter.model.named_modules() if name}
        near = get_close_matches(path, names, n=3) or sorted(adapter.anatomy.stages)
        raise UnknownNameError(f"{adapter.name} has no layer {path!r}; did you mean {', '.join(near)}?")
    return path


def gate_index(adapter: ModelAdapter, need: Need) -> int:
    """Which of the model's gates a need is for, counted from 0."""
    number, gates = int(str(need.option("gate", -1))), adapter.anatomy.gates
    if not -len(gates) <= number < len(gates):
        raise UnknownNameError(f"{adapter.name} has {len(gates)} channel-attention layers; gate {number} is not one")
    return number % len(gates)


def tapped_features(tap: Tap) -> Tensor:
    """What a tap saw, or CaptureError."""
    if tap.features is None:
        raise CaptureError(f"layer {tap.path!r} did not run in the forward pass")
    return tap.features


def _taps(adapter: ModelAdapter, needs: Sequence[Need]) -> dict[str, Tap]:
    paths = [layer_of(adapter, n) for n in needs if n.signal in (Signal.FEATURES, Signal.FEATURE_GRADIENTS)]
    if adapter.anatomy.classifier and any(n.signal is Signal.POOLED_FEATURES for n in needs):
        paths.append(adapter.anatomy.classifier.features)
    return {path: Tap(path, adapter.size, adapter.sequences) for path in paths}


@contextmanager
def listening(adapter: ModelAdapter, needs: Sequence[Need]) -> Iterator[Recorders]:
    """Hooks and modes for what `needs` ask for, for the length of the block."""
    anatomy, running = adapter.anatomy, list[int]()
    outputs = OutputRecorder()
    heard = Recorders(
        _taps(adapter, needs), outputs, AttentionRecorder(adapter, needs, running), WindowRecorder(adapter, running)
    )
    gates = {gate_index(adapter, n) for n in needs if n.signal in (Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES)}
    attends, windowed = (any(n.signal in kind for n in needs) for kind in (ATTENTION_SIGNALS, WINDOW_SIGNALS))
    blocks = tuple(block.path for block in anatomy.windows) if windowed else anatomy.attention_blocks if attends else ()
    with ExitStack() as stack:
        stack.enter_context(disable_mha_fastpath())
        for tap in heard.taps.values():
            stack.enter_context(tapped(adapter.model, tap))
        for gate in (anatomy.gates[index] for index in gates):
            layer, values = (adapter.model.get_submodule(path) for path in (gate.layer, gate.values))
            stack.callback(layer.register_forward_pre_hook(outputs.input_hook(gate.layer)).remove)
            stack.callback(values.register_forward_hook(outputs.output_hook(gate.values)).remove)
        stack.enter_context(current_block(adapter.model, blocks, running))
        if attends or windowed:  # no model supplies both
            stack.enter_context(AttentionCalls(heard.windows if windowed else heard.attention))
        yield heard
