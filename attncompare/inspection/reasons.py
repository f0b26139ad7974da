"""Why a part of a model was not found, in words for its user."""

from collections.abc import Iterable

from attncompare.inspection.attention import AttentionLayout
from attncompare.inspection.structure import Part, SELayer
from attncompare.inspection.trace import Trace

UNCHAINED = "its attention does not lie in blocks each of which hands its tokens to the next"
NO_HEAD = "its output is an embedding, and no linear layer on averaged features makes it"
NO_GATES = "no module of it returns gates that multiply its channels (squeeze-and-excitation, ECA, CBAM)"
NO_LAYER = "no layer whose output lies on the image, row by row and once per pass, leads to its score"


def missing_parts(no_classifier: str, se_layers: tuple[SELayer, ...], layer: str | None) -> dict[Part, str]:
    """Why there is no classifier, channel attention or feature layer; those that there are have no entry."""
    reasons: dict[Part, str] = {
        "classifier": no_classifier,
        "se_layers": "" if se_layers else NO_GATES,
        "feature_layer": "" if layer else NO_LAYER,
    }
    return {part: reason for part, reason in reasons.items() if reason}


def missing_flow(seen: Trace, attention: AttentionLayout, blocks: tuple[str, ...]) -> dict[Part, str]:
    """Why parts of attention, and backward passes with other rules, are not to be had."""
    reasons: dict[Part, str] = {"token_blocks": "" if blocks else UNCHAINED, "relus": not_of_relus(seen.activations)}
    return attention.missing | {part: reason for part, reason in reasons.items() if reason}


def not_of_relus(names: Iterable[str]) -> str:
    """Why guided backpropagation is not defined for a network with these activations; "" where it is."""
    others = sorted(set(names) - {"relu", "relu6", "hardtanh"})
    if others:
        return f"it changes the backward pass of ReLUs, and this model uses {', '.join(others)}; use saliency"
    return "" if set(names) else "it changes the backward pass of ReLUs, and this model has none; use saliency"
