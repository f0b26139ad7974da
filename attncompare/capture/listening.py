"""Everything that listens during one shared pass, set up from what is asked for and taken down after."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

from torch import Tensor

from attncompare.capture.features import Tap, tapped
from attncompare.capture.recorders import AttentionRecorder, Need, OutputRecorder, WindowRecorder
from attncompare.errors import UnknownNameError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import Signal

ATTENTION_SIGNALS = frozenset(
    {Signal.ATTENTION, Signal.ATTENTION_GRADIENTS, Signal.FUSED_ATTENTION, Signal.CLASS_ATTENTION}
)
WINDOW_SIGNALS = frozenset({Signal.WINDOW_ATTENTION, Signal.ATTENTION_HIERARCHY})
GATE_SIGNALS = frozenset({Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES})


@dataclass
class Recorders:
    """What listens during one shared pass, as far as it is asked for; and the logits, when they are there.

    taps: by the need that reads them; those of one layer are one.
    """

    taps: Mapping[Need, Tap]
    outputs: OutputRecorder = field(default_factory=OutputRecorder)
    attention: AttentionRecorder | None = None
    windows: WindowRecorder | None = None
    logits: Tensor | None = None


def layer_of(adapter: ModelAdapter, need: Need) -> str:
    """The module path of a need's feature layer."""
    given = dict(need.options).get("layer")
    return str(adapter.structure.feature_layer) if given is None else resolve_layer(adapter, str(given))


def resolve_layer(adapter: ModelAdapter, path: str) -> str:
    """Check that a module path exists in the model."""
    try:
        adapter.model.get_submodule(path)
        known = path != ""
    except AttributeError:
        known = False
    if not known:
        names = {name for name, _ in adapter.model.named_modules() if name}
        near = get_close_matches(path, names, n=3) or sorted(adapter.structure.stages)
        raise UnknownNameError(f"{adapter.name} has no layer {path!r}; did you mean {', '.join(near)}?")
    return path


def gate_index(adapter: ModelAdapter, need: Need) -> int:
    """Which of the model's gates a need is for, counted from 0."""
    number, gates = int(str(need.option("gate", -1))), adapter.structure.se_layers
    if not -len(gates) <= number < len(gates):
        raise UnknownNameError(f"{adapter.name} has {len(gates)} channel-attention layers; gate {number} is not one")
    return number % len(gates)


def _taps(adapter: ModelAdapter, needs: Sequence[Need]) -> dict[Need, Tap]:
    """One tap for each layer whose features or gradients are needed."""
    paths = {n: layer_of(adapter, n) for n in needs if n.signal in (Signal.FEATURES, Signal.FEATURE_GRADIENTS)}
    if classifier := adapter.structure.classifier:
        paths |= {need: classifier.feature_module for need in needs if need.signal is Signal.POOLED_FEATURES}
    taps = {path: Tap(path, adapter.size, adapter.token_layouts) for path in dict.fromkeys(paths.values())}
    return {need: taps[path] for need, path in paths.items()}


@contextmanager
def listening(adapter: ModelAdapter, needs: Sequence[Need]) -> Iterator[Recorders]:
    """Hooks and modes for what `needs` ask for, for the length of the block."""
    heard, signals = Recorders(_taps(adapter, needs)), {need.signal for need in needs}
    with ExitStack() as stack:
        for tap in dict.fromkeys(heard.taps.values()):
            stack.enter_context(tapped(adapter.model, tap))
        for gate in {gate_index(adapter, n) for n in needs if n.signal in GATE_SIGNALS}:
            stack.enter_context(heard.outputs.of_gate(adapter.model, adapter.structure.se_layers[gate]))
        if signals & ATTENTION_SIGNALS:
            heard.attention = AttentionRecorder(adapter, needs)
            stack.enter_context(heard.attention.active())
        if signals & WINDOW_SIGNALS:  # no model supplies both
            heard.windows = WindowRecorder(adapter)
            stack.enter_context(heard.windows.active())
        yield heard
