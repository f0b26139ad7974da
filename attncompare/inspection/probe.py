"""Find a model's structure by running it: feature layer, token layout, attention, classifier and gates.

Nothing is guessed from names or square roots: a module counts as a gate because its input times the gate values equals
its output, as a classifier because its input equals the mean of a feature map, as a feature layer because the score
depends on it, and the read-out row is the one that the logits depend on.
"""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from attncompare.errors import UnsupportedModelError, reason_of
from attncompare.inspection.attention import find_attention
from attncompare.inspection.attention_calls import AttentionCalls
from attncompare.inspection.calls import BATCH
from attncompare.inspection.classifier import find_classifier
from attncompare.inspection.features import find_candidates, find_stages
from attncompare.inspection.gates import find_se_layers
from attncompare.inspection.graph import Graph
from attncompare.inspection.layout import TokenLayout, find_layout
from attncompare.inspection.recorder import check_recorder
from attncompare.inspection.spatial import Changes, find_token_layouts
from attncompare.inspection.structure import Classifier, ModelStructure, Part
from attncompare.inspection.trace import Network, Trace
from attncompare.state import frozen_eval

CHANCE = 1e-3  # largest change of one image's output between passes, relative
UNCHAINED = "its attention does not lie in blocks each of which hands its tokens to the next"
NO_HEAD = "its output is an embedding, and no linear layer on averaged features makes it"
NO_GATES = "no module of it returns gates that multiply its channels (squeeze-and-excitation, ECA, CBAM)"
NO_LAYER = "no layer whose output lies on the image, row by row and once per pass, leads to its score"


def probe(network: Network) -> ModelStructure:
    """The structure of a model, from a few passes; parts that `network.overrides` gives are taken as they are.

    Raises UnsupportedModelError when the model does not run or nothing in it lies on the image.
    """
    try:
        with frozen_eval(network.module, graph=True):
            return _structure(network)
    except UnsupportedModelError:
        raise
    except Exception as error:  # a user's module may do anything
        h, w = network.size
        raise UnsupportedModelError(
            f"{network.name} does not run on ({BATCH}, 3, {h}, {w}), or what it does there cannot be followed: "
            f"{reason_of(error)}{_hint(network.module)}"
        ) from error


def _hint(model: nn.Module) -> str:
    """What is probably wrong with a model that does not run."""
    kinds = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype is not torch.float32}
    return f"; its weights are {', '.join(sorted(kinds))}: call .float() on it first" if kinds else ""


def _structure(network: Network) -> ModelStructure:
    """As `probe`, but what the model raises is passed on as it is."""
    # What runs, how outputs change with a place of the image, and what the score depends on.
    trace = Trace(network)
    if (rows := len(trace.logits)) != BATCH:
        raise UnsupportedModelError(f"{network.name} returned {rows} rows for {BATCH} images; one for each is needed")
    _refuse_chance(trace)
    candidates = find_candidates(trace)
    changes = Changes(trace, candidates)
    graph = Graph(trace)

    stated = network.overrides.get("tokens")
    seen_layouts = [stated] if isinstance(stated, TokenLayout) else find_token_layouts(changes)
    attention = find_attention(graph, seen_layouts)
    reduced = [TokenLayout(0, block.geometry.query_grid) for block in attention.windows]
    tokens = [] if attention.tokens is None else [attention.tokens]
    token_layouts = {layout.length: layout for layout in (*reduced, *seen_layouts, *tokens)}

    on_image = [
        call
        for call in candidates
        if find_layout(call.output.shape, network.size, token_layouts.values()) and call.path not in changes.astray
    ]
    stages = find_stages(graph, on_image, token_layouts.values())
    # The mean over the positions of a sequence with a class token would include that token.
    prefixed = {length for length, layout in token_layouts.items() if layout.prefix}
    averaged = [c for c in on_image if len(c.output.shape) == 4 or c.output.shape[1] not in prefixed]
    with torch.no_grad():
        classifier = find_classifier(graph, averaged)
    layer, stages = _feature_layers(trace, attention, classifier, stages)
    blocks = _token_blocks(trace, attention)
    se_layers = find_se_layers(trace.calls)

    overrides = {part: value for part, value in network.overrides.items() if value is not None}
    no_classifier = "" if isinstance(classifier, Classifier) else NO_HEAD if network.embedding else classifier
    missing: dict[Part, str] = {
        **attention.missing,
        "token_blocks": "" if blocks else UNCHAINED,
        "relus": not_of_relus(trace.activations),
        "classifier": no_classifier,
        "se_layers": "" if se_layers else NO_GATES,
        "feature_layer": "" if layer or overrides.get("feature_layer") else NO_LAYER,
    }
    structure = replace(
        attention,
        feature_layer=layer,
        token_layouts=tuple(layout for layout in token_layouts.values() if layout is not attention.tokens),
        token_blocks=blocks,
        classifier=classifier if isinstance(classifier, Classifier) else None,
        se_layers=se_layers,
        stages=stages,
        missing={part: reason for part, reason in missing.items() if reason and not overrides.get(part)},
        outputs=trace.logits.shape[1],
    )
    structure = replace(structure, **overrides)  # type: ignore[arg-type]
    if network.attention is not AttentionCalls:
        check_recorder(trace, structure)
    return structure


def _feature_layers(
    trace: Trace, attention: ModelStructure, classifier: Classifier | str, stages: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """(default feature layer, one layer per resolution or block): of the stages found, those that the family calls for."""
    layer = stages[-1] if stages else None
    if attention.family == "vit":
        # What feeds each attention: its norm, where the gradients of patches are not yet zero.
        over_tokens = [path for path in attention.attention_blocks if path not in attention.pooling_blocks]
        sources = [trace.source_of(path) for path in over_tokens]
        return sources[-1] or layer, tuple(path for path in sources if path)
    if isinstance(classifier, Classifier):
        # What CAM reads, so that CAM and Grad-CAM are of the same features.
        return classifier.feature_module, (*stages[:-1], classifier.feature_module)
    return layer, stages


def _refuse_chance(trace: Trace) -> None:
    """Raise UnsupportedModelError when the output for an image changes with the random state or the rest of the batch."""
    network, first = trace.network, trace.logits[0]
    other = torch.rand(trace.images.shape, generator=torch.Generator().manual_seed(1)).to(trace.images)
    images = torch.cat([trace.images[:1], other[1:]])
    with frozen_eval(network.module, graph=False):
        torch.default_generator.manual_seed(torch.initial_seed() ^ 1)  # any seed but that of the first pass
        again = network.forward(images)[0]
    if float((again - first).abs().max()) > CHANCE * max(float(first.abs().max()), 1e-6):
        raise UnsupportedModelError(
            f"{network.name} gives one image another output in another pass: it draws random numbers, or mixes the images "
            "of a batch; in evaluation mode it must do neither"
        )


def _token_blocks(trace: Trace, attention: ModelStructure) -> tuple[str, ...]:
    """The module around each attention that hands its tokens to the next; () where blocks are not chained like that."""
    layout, paths = attention.tokens, [path.split(".") for path in attention.attention_blocks]
    if layout is None or not paths or attention.pooling_blocks:
        return ()
    for depth in range(1, min(map(len, paths)) + 1):
        around = [".".join(path[:depth]) for path in paths]
        if len(set(around)) < len(paths) or not all(path[depth - 1][-1:].isdigit() for path in paths):
            continue
        calls = [call for path in around if (call := trace.call_of(path)) is not None]
        shapes = [call.output.shape for call in calls]
        if len(calls) == len(paths) and all(len(s) == 3 and s[1] == layout.length for s in shapes):
            chained = all(before.output.same_tokens(after.input) for before, after in pairwise(calls))
            return tuple(around) if chained else ()
    return ()


def not_of_relus(names: set[str]) -> str:
    """Why guided backpropagation is not defined for a network with these activations; "" where it is."""
    others = sorted(names - {"relu", "relu6", "hardtanh"})
    if others:
        return f"it changes the backward pass of ReLUs, and this model uses {', '.join(others)}; use saliency"
    return "" if names else "it changes the backward pass of ReLUs, and this model has none; use saliency"
