"""Why a model cannot supply a signal, in words for its user."""

from collections.abc import Mapping

from attncompare.capture.attention_layout import AttentionLayout
from attncompare.capture.backward_rules import not_of_relus
from attncompare.capture.trace import Trace
from attncompare.models.adapter import ModelSource
from attncompare.models.structure import SELayer
from attncompare.signals import Signal

GIVEN = {
    "classifier": (Signal.CLASSIFIER_WEIGHTS, Signal.POOLED_FEATURES),
    "se_layers": (Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES),
}
UNCHAINED = "its attention does not lie in blocks each of which hands its tokens to the next"
NO_HEAD = "its output is an embedding, and no linear layer on averaged features makes it"


def missing_parts(no_classifier: str, se_layers: tuple[SELayer, ...], layer: str | None) -> dict[Signal, str]:
    """Why signals other than attention's cannot be supplied."""
    missing: dict[Signal, str] = {}
    if no_classifier:
        missing |= dict.fromkeys(GIVEN["classifier"], no_classifier)
    if not se_layers:
        reason = "no module of it returns gates that multiply its channels (squeeze-and-excitation, ECA, CBAM)"
        missing |= dict.fromkeys(GIVEN["se_layers"], reason)
    if layer is None:
        reason = "no layer whose output lies on the image, row by row and once per pass, leads to its score"
        missing |= dict.fromkeys(
            (Signal.FEATURES, Signal.FEATURE_GRADIENTS, Signal.FEATURE_LAYER, Signal.ABLATED_SCORES), reason
        )
    return missing


def missing_passes(
    source: ModelSource, seen: Trace, attention: AttentionLayout, blocks: tuple[str, ...]
) -> dict[Signal, str]:
    """Why signals of attention, of altered passes and of classes cannot be supplied."""
    missing = dict(attention.missing)
    if not blocks:
        missing.setdefault(Signal.BLOCK_GRADIENTS, UNCHAINED)
        missing.setdefault(Signal.ATTENTION_RELEVANCE, UNCHAINED)
    if reason := not_of_relus(seen.activations):
        missing[Signal.GUIDED_GRADIENTS] = reason
    if source.embedding:
        missing[Signal.CLASS_SCORES] = "its output is an embedding; it has no classes"
    return missing


def supplied_by_user(overrides: Mapping[str, object]) -> set[Signal]:
    """What the user gives, and is no longer missing."""
    return {signal for part, signals in GIVEN.items() if overrides.get(part) for signal in signals}
