"""Find a model's structure by running it: feature layer, token layout, attention, classifier and gates.

Nothing is guessed from names or square roots: a module counts as a gate because its input times the gate values equals
its output, as a classifier because its input equals the mean of a feature map, as a feature layer because the score
depends on it, and the read-out row is the one that the logits depend on.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from attncompare.errors import UnsupportedModelError, reason_of
from attncompare.inspection.attention import HEADS, NO_ATTENTION, AttentionLayout, find_attention
from attncompare.inspection.classifier import find_classifier, outermost
from attncompare.inspection.graph import Graph
from attncompare.inspection.layout import TokenLayout, find_layout
from attncompare.inspection.reasons import NO_HEAD, missing_flow, missing_parts
from attncompare.inspection.spatial import Changes, Grid, find_sequences, grid_of
from attncompare.inspection.structure import Family, ModelStructure, SELayer
from attncompare.inspection.trace import BATCH, Call, Network, Note, Trace, equal, trace
from attncompare.state import LOCK, disable_mha_fastpath, preserve_state

POOLERS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
CHANCE = 1e-3  # largest change of one image's output between passes, relative


def _candidates(seen: Trace, size: Grid) -> list[Call]:
    """Calls whose output may lie on the image, in order; pooling and reshaping modules aside."""
    # Inside an attention module (N x N) weights can look like an image, and projections are no features.
    attentions = tuple(c.path + "." for c in seen.calls if _is_attention(c) and not c.gate)
    return [
        call
        for call in seen.calls
        if call.direct
        and len(call.output.shape) in (3, 4)
        and call.output.shape[0] == BATCH
        and not isinstance(call.module, POOLERS)
        and seen.runs[call.path] == 1  # which run of several is meant is not defined
        and not call.path.startswith(attentions)
        and (len(call.output.shape) == 3 or _has_channels(call.output.shape, size))
    ]


def _has_channels(shape: torch.Size, size: Grid) -> bool:
    """Whether a 4-D output is a feature map on the image; a single channel is a mask."""
    layout = find_layout(shape, size)
    return layout is not None and shape[1 if layout == "nchw" else 3] > 1


def _is_attention(call: Call) -> bool:
    name = type(call.module).__name__.lower()
    return "attention" in name or ("att" in name and any(hasattr(call.module, heads) for heads in HEADS))


def _is_score_map(graph: Graph, call: Call) -> bool:
    """Whether it holds one channel per class and no features: the logits are its mean, or a linear layer made it."""
    if len(call.output.shape) == 3 and isinstance(call.module, nn.Linear):
        return call.output.shape[-1] == graph.logits.shape[1]
    return any(mean.shape == graph.logits.shape and equal(mean, graph.logits) for mean in graph.means_of(call).plain)


def _strength(gradient: Tensor) -> Tensor:
    """(B,N,...) -> (N,): how strong a gradient is at each token of a sequence, or in each channel of a map."""
    return gradient.abs().transpose(0, 1).flatten(1).sum(1)


def _on_the_scores_path(graph: Graph, calls: list[Call], sequences: list[TokenLayout]) -> list[Call]:
    """Of calls that lie on the image those whose every image position may matter to the score."""
    # What is the same for two images (a position embedding) shows nothing of them.
    calls = [c for c in calls if c.output.varies]
    reached = []
    for call, strength in zip(calls, graph.score_gradients(calls, _strength), strict=True):
        shape = call.output.shape
        layout = next((s for s in sequences if len(shape) == 3 and s.length == shape[1]), None)
        # What only the class token's row of a sequence passes on is no evidence of any place.
        if strength is not None and bool(strength[0 if layout is None else layout.prefix :].any()):
            reached.append(call)
    return reached


def _stages(
    seen: Trace, graph: Graph, calls: list[Call], source: Network, sequences: list[TokenLayout]
) -> tuple[str, ...]:
    """One layer per resolution, shallow to deep, of those the score depends on.

    On the last grid the last module to finish; on those before it the outermost one, of equals the last, because what
    opens the next stage still has the resolution of the stage before.
    """
    size = source.size
    with torch.no_grad():
        calls = [c for c in calls if source.embedding or not _is_score_map(graph, c)]
    best: dict[Grid, tuple[int, int, str]] = {}
    calls = _on_the_scores_path(graph, calls, sequences)
    for order, call in enumerate(calls):
        grid = grid_of(call, size, sequences)
        assert grid is not None
        path = outermost(seen, call)
        best[grid] = min(best.get(grid, (99, 0, "")), (path.count("."), -order, path))
    if not calls:
        return ()
    last = grid_of(calls[-1], size, sequences)
    before = [path for grid, (_, _, path) in sorted(best.items(), reverse=True) if grid != last]
    return (*before, outermost(seen, calls[-1]))


def _attention_input(seen: Trace, block: str) -> str | None:
    """The module whose output feeds the last attention block: its norm, where patch gradients are not yet zero."""
    call = seen.call_of(block)
    fed = None if call is None else call.fed
    if fed is None or fed.shape[0] != BATCH:
        return None
    return next((c.path for c in seen.calls if c.output.number == fed.number and c.direct), None)


def _refuse_chance(seen: Trace, source: Network) -> None:
    """Raise UnsupportedModelError when the output for an image changes with the random state or the rest of the batch."""
    assert seen.logits is not None
    other = torch.rand(seen.images.shape, generator=torch.Generator().manual_seed(1)).to(seen.images)
    images = torch.cat([seen.images[:1], other[1:]])
    with torch.no_grad(), preserve_state(source.model), disable_mha_fastpath():
        torch.default_generator.manual_seed(torch.initial_seed() ^ 1)  # any seed but that of the first pass
        again = source.forward(images)
    first = seen.logits[0]
    if float((again[0] - first).abs().max()) > CHANCE * max(float(first.abs().max()), 1e-6):
        raise UnsupportedModelError(
            f"{source.name} gives one image another output in another pass: it draws random numbers, or mixes the images "
            "of a batch; in evaluation mode it must do neither"
        )


def _se_layers(seen: Trace) -> tuple[SELayer, ...]:
    """Layers that multiply their channels by gates, each once, whose modules run once."""
    found: dict[str, SELayer] = {}
    for call in seen.calls:
        if call.gate and seen.runs[call.path] == seen.runs[call.gate] == 1:
            found.setdefault(call.gate, SELayer(call.path, call.gate))
    return tuple(found.values())


def _family_and_layer(
    seen: Trace, attention: AttentionLayout, stages: tuple[str, ...]
) -> tuple[Family, str | None, tuple[str, ...]]:
    """(family, default feature layer, stages)."""
    over_tokens = [path for path in attention.blocks if path not in attention.pooling_blocks]
    inputs = [_attention_input(seen, path) for path in over_tokens]
    fed = None if not over_tokens else seen.call_of(over_tokens[-1])
    if attention.tokens is not None and fed is not None and fed.fed is not None and len(fed.fed.shape) == 3:
        return "vit", inputs[-1] or (stages[-1] if stages else None), tuple(path for path in inputs if path)
    plain = attention.missing.get("class_attention") == NO_ATTENTION or (
        attention.blocks and not attention.pooling_blocks
    )
    return ("cnn" if plain else "hierarchical"), (stages[-1] if stages else None), stages


def _token_blocks(seen: Trace, attention: AttentionLayout) -> tuple[str, ...]:
    """The module around each attention that hands its tokens to the next; () where blocks are not chained like that."""
    layout, paths = attention.tokens, [path.split(".") for path in attention.blocks]
    if layout is None or not paths or attention.pooling_blocks:
        return ()
    for depth in range(1, min(map(len, paths)) + 1):
        around = [".".join(path[:depth]) for path in paths]
        if len(set(around)) < len(paths) or not all(path[depth - 1][-1:].isdigit() for path in paths):
            continue
        calls = [seen.call_of(path) for path in around]
        if all(c is not None and len(c.output.shape) == 3 and c.output.shape[1] == layout.length for c in calls):
            notes = [(c.fed, c.output) for c in calls if c is not None]
            chained = (_same(output, fed) for (_, output), (fed, _) in pairwise(notes))
            return tuple(around) if all(chained) else ()
    return ()


def _same(tokens: Note, fed: Note | None) -> bool:
    """Whether what goes in is what came out, the tensor itself or its equal."""
    if fed is None or tokens.marks is None or fed.marks is None:
        return False
    return fed.number == tokens.number or (fed.shape == tokens.shape and torch.equal(fed.marks, tokens.marks))


def probe(source: Network) -> ModelStructure:
    """The structure of a model, from a traced pass and a few that follow it up; what `source.overrides` gives is taken.

    Raises UnsupportedModelError when the model does not run or nothing in it lies on the image.
    """
    try:
        with LOCK:
            return _structure(source)
    except UnsupportedModelError:
        raise
    except Exception as error:  # a user's module may do anything
        h, w = source.size
        raise UnsupportedModelError(
            f"{source.name} does not run on ({BATCH}, 3, {h}, {w}), or what it does there cannot be followed: "
            f"{reason_of(error)}{_hint(source.model)}"
        ) from error


def _hint(model: nn.Module) -> str:
    """What is probably wrong with a model that does not run."""
    kinds = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype is not torch.float32}
    return f"; its weights are {', '.join(sorted(kinds))}: call .float() on it first" if kinds else ""


def _structure(source: Network) -> ModelStructure:
    """As `probe`; what the model raises passes through."""
    seen, size = trace(source), source.size
    assert seen.logits is not None
    if (rows := len(seen.logits)) != BATCH:
        raise UnsupportedModelError(f"{source.name} returned {rows} rows for {BATCH} images; one for each is needed")
    _refuse_chance(seen, source)
    overrides: Mapping[str, object] = source.overrides
    given = overrides.get("tokens")
    given = given if isinstance(given, TokenLayout) else None
    candidates = _candidates(seen, size)
    changes = Changes(source, seen, candidates)
    sequences = find_sequences(changes, seen, candidates, size) if given is None else [given]
    with torch.inference_mode(False), torch.enable_grad():
        graph = Graph(source, seen)
        attention = find_attention(seen, graph, source, given, sequences)
        reduced = (TokenLayout(0, block.geometry.query_grid) for block in attention.windows)
        sequences = list({layout.length: layout for layout in (*reduced, *sequences)}.values())
        if attention.tokens is not None:
            sequences = [s for s in sequences if s.length != attention.tokens.length]
        every = [*sequences, *([attention.tokens] if attention.tokens else [])]
        calls = [c for c in candidates if find_layout(c.output.shape, size, every) and c.path not in changes.astray]
        family, layer, stages = _family_and_layer(seen, attention, _stages(seen, graph, calls, source, every))
        prefixed = {layout.length for layout in every if layout.prefix}
        averaged = [c for c in calls if len(c.output.shape) == 4 or c.output.shape[1] not in prefixed]
        with torch.no_grad():
            classifier, no_classifier = find_classifier(seen, graph, averaged, size)
        del graph
    se_layers = _se_layers(seen)
    if classifier is not None and family != "vit":
        layer = classifier.feature_module  # what CAM reads, so that CAM and Grad-CAM are of the same features
        stages = (*stages[:-1], layer)
    layer = str(overrides["feature_layer"]) if overrides.get("feature_layer") else layer
    blocks = _token_blocks(seen, attention)
    missing = missing_flow(seen, attention, blocks)
    missing |= missing_parts(
        "" if classifier is not None else NO_HEAD if source.embedding else no_classifier, se_layers, layer
    )
    assert seen.logits is not None
    structure = ModelStructure(
        family,
        layer,
        tokens=attention.tokens,
        attention_blocks=attention.blocks,
        pooling_blocks=attention.pooling_blocks,
        attention_tokens=attention.attention_tokens,
        windows=attention.windows,
        token_layouts=tuple(sequences),
        token_blocks=blocks,
        classifier=classifier,
        se_layers=se_layers,
        stages=stages,
        missing={part: reason for part, reason in missing.items() if not overrides.get(part)},
        outputs=int(seen.logits.shape[1]),
    )
    return replace(structure, **{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
