"""Find a model's anatomy by running it once: feature layer, token layout, attention, classifier and gates.

Nothing is guessed from names or square roots: a module counts as a gate because its input times the gate values equals
its output, as a classifier because its input equals the mean of a feature map, as a feature layer because the score
depends on it, and the read-out row is the one that the logits depend on.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from attncompare.adapters.base import Anatomy, Classifier, Family, Gate, ModelAdapter, Source
from attncompare.capture.attention import slow_attention_path
from attncompare.capture.attention_layout import HEADS, NO_ATTENTION, AttentionLayout, find_attention, score_gradients
from attncompare.capture.capture import left_as_found
from attncompare.capture.features import find_layout, token_grid
from attncompare.capture.trace import BATCH, Call, Trace, equal, trace
from attncompare.errors import UnsupportedModelError
from attncompare.signals import Signal, TokenLayout

POOLERS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
GIVEN = {
    "classifier": (Signal.CLASSIFIER_WEIGHTS, Signal.POOLED_FEATURES),
    "gates": (Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES),
}
MOST_ADDED = 8  # prefix tokens beside a grid that no attention confirms
Grid = tuple[int, int]


def _outermost(seen: Trace, call: Call) -> str:
    """Of the modules that return this very tensor the outermost, and of its equals the last to touch it.

    One that runs once, where there is one: a tap keeps the last of several runs (VOLO's dropout before both its heads).
    """
    same = [
        (sum(c.path == other.path for other in seen.calls) > 1, c.path.count("."), -order, c.path)
        for order, c in enumerate(seen.calls)
        if c.tensor is call.tensor and c.direct
    ]
    return min(same)[3]


def _candidates(seen: Trace, size: Grid) -> list[Call]:
    """Calls whose output may lie on the image, in order; pooling and reshaping modules aside."""
    # Inside an attention module (N x N) weights can look like an image, and projections are no features.
    attentions = tuple(c.path + "." for c in seen.calls if _is_attention(c) and not c.gate)
    return [
        call
        for call in seen.calls
        if call.direct
        and call.tensor.ndim in (3, 4)
        and call.tensor.shape[0] == BATCH
        and not isinstance(call.module, POOLERS)
        and not call.path.startswith(attentions)
        and (call.tensor.ndim == 3 or _has_channels(call.tensor.shape, size))
    ]


def _has_channels(shape: torch.Size, size: Grid) -> bool:
    """Whether a 4-D output is a feature map on the image; a single channel is a mask."""
    layout = find_layout(shape, size)
    return layout is not None and shape[1 if layout == "nchw" else 3] > 1


def _is_attention(call: Call) -> bool:
    name = type(call.module).__name__.lower()
    return "attention" in name or ("att" in name and any(hasattr(call.module, heads) for heads in HEADS))


def _grid_of(call: Call, size: Grid, sequences: Iterable[TokenLayout]) -> Grid | None:
    """The grid on which an output lies."""
    shape, layout = call.tensor.shape, find_layout(call.tensor.shape, size, sequences)
    if layout is None or isinstance(layout, TokenLayout):
        return None if layout is None else layout.grid
    return (int(shape[2]), int(shape[3])) if layout == "nchw" else (int(shape[1]), int(shape[2]))


def _is_score_map(call: Call, logits: Tensor) -> bool:
    """Whether it holds one channel per class and no features: the logits are its mean, or a linear layer made it."""
    if call.tensor.ndim == 3 and isinstance(call.module, nn.Linear):
        return call.tensor.shape[-1] == logits.shape[1]
    return any(mean.shape == logits.shape and equal(mean, logits) for mean in call.means)


def _on_the_scores_path(seen: Trace, calls: list[Call], sequences: list[TokenLayout]) -> list[Call]:
    """Of calls that lie on the image those whose every image position may matter to the score."""
    # What is the same for two images (a position embedding) shows nothing of them.
    calls = [c for c in calls if c.tensor.requires_grad and not torch.equal(c.tensor[0], c.tensor[1])]
    reached = []
    for call, gradient in zip(calls, score_gradients(seen, [c.tensor for c in calls]), strict=True):
        layout = next((s for s in sequences if gradient.ndim == 3 and s.length == gradient.shape[1]), None)
        # What only the class token's row of a sequence passes on is no evidence of any place.
        if bool((gradient if layout is None else gradient[:, layout.prefix :]).any()):
            reached.append(call)
    return reached


def _stages(seen: Trace, calls: list[Call], source: Source, sequences: list[TokenLayout]) -> tuple[str, ...]:
    """One layer per resolution, shallow to deep, of those the score depends on.

    On the last grid the last module to finish; on those before it the outermost one, of equals the last, because what
    opens the next stage still has the resolution of the stage before.
    """
    assert seen.logits is not None
    size = source.preprocessing.size
    with torch.no_grad():
        calls = [c for c in calls if source.embedding or not _is_score_map(c, seen.logits)]
    best: dict[Grid, tuple[int, int, str]] = {}
    calls = _on_the_scores_path(seen, calls, sequences)
    for order, call in enumerate(calls):
        grid = _grid_of(call, size, sequences)
        assert grid is not None
        path = _outermost(seen, call)
        best[grid] = min(best.get(grid, (99, 0, "")), (path.count("."), -order, path))
    if not calls:
        return ()
    last = _grid_of(calls[-1], size, sequences)
    before = [path for grid, (_, _, path) in sorted(best.items(), reverse=True) if grid != last]
    return (*before, _outermost(seen, calls[-1]))


def _sequences(seen: Trace, source: Source) -> list[TokenLayout]:
    """How sequences of tokens lie on the image, row by row behind a few prefix tokens, checked by value.

    The grid is the one with the image's aspect ratio, or that of a convolution before it when tokens were added. Each
    quadrant of a noise image is replaced in turn: the tokens of that quadrant must change the most. A transposed or
    shuffled sequence, or channels that were taken for tokens, does not pass. Most layers of a length must.
    """
    size = source.preprocessing.size
    calls = [c for c in _candidates(seen, size) if c.tensor.ndim == 3]
    if not calls:
        return []
    convolved = [_grid_of(c, size, ()) for c in _candidates(seen, size) if c.tensor.ndim == 4]
    grids = dict.fromkeys([*convolved, *(token_grid(c.tensor.shape[1], size) for c in calls)])
    after = _with_quadrants_changed(source, list(dict.fromkeys(_outermost(seen, c) for c in calls)))
    votes: dict[TokenLayout, list[bool]] = {}
    for tokens in after.values():
        for layout in _possible(tokens.shape[1], size, [grid for grid in grids if grid]):
            votes.setdefault(layout, []).append(_moves_with_the_image(tokens, layout))
    right = [layout for layout, passed in votes.items() if 2 * sum(passed) >= len(passed)]
    return [layout for layout in right if sum(other.length == layout.length for other in right) == 1]


def _possible(tokens: int, size: Grid, grids: list[Grid]) -> list[TokenLayout]:
    """The layouts that a sequence of that length may have."""
    whole = token_grid(tokens, size)
    if whole is not None:
        return [TokenLayout(0, whole)]
    return [TokenLayout(tokens - h * w, (h, w)) for h, w in grids if 0 < tokens - h * w <= MOST_ADDED]


def _with_quadrants_changed(source: Source, paths: list[str]) -> dict[str, Tensor]:
    """What some layers return for a noise image and for it with each quadrant replaced, (5,...)."""
    adapter, (height, width) = ModelAdapter(source, Anatomy("cnn", None)), source.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, height, width, generator=generator).repeat(5, 1, 1, 1)
    other = torch.rand(3, height, width, generator=generator)
    for index, (rows, columns) in enumerate(_quadrants(height, width)):
        images[index + 1, :, rows, columns] = other[:, rows, columns]
    kept: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(left_as_found(source.model))
        stack.enter_context(slow_attention_path())
        for path in paths:

            def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...], path: str = path) -> None:
                kept[path] = (output[0] if isinstance(output, tuple) else output).clone()

            stack.callback(source.model.get_submodule(path).register_forward_hook(keep).remove)
        adapter.forward(images.to(adapter.device))
    return kept


def _quadrants(height: int, width: int) -> list[tuple[slice, slice]]:
    """The four quadrants; a middle row or column belongs to none."""
    halves = [(slice(0, side // 2), slice((side + 1) // 2, None)) for side in (height, width)]
    return [(rows, columns) for rows in halves[0] for columns in halves[1]]


def _moves_with_the_image(tokens: Tensor, layout: TokenLayout) -> bool:
    """Tokens (5,N,C) of an image and of it with each quadrant changed: whether most tokens answer most to their own."""
    if len(tokens) != 5:
        return False
    change = layout.to_grid((tokens[1:] - tokens[:1]).abs().mean(-1))
    answers = change.argmax(dim=0)
    return all(float((answers[q] == index).float().mean()) > 0.5 for index, q in enumerate(_quadrants(*layout.grid)))


def _attention_input(seen: Trace, block: str) -> str | None:
    """The module whose output feeds the last attention block: its norm, where patch gradients are not yet zero."""
    call = seen.call_of(block)
    fed = None if call is None else call.fed
    return next((c.path for c in seen.calls if fed is not None and c.tensor is fed and c.direct), None)


def _classifier(seen: Trace, calls: list[Call], size: Grid) -> tuple[Classifier | None, str]:
    """A linear layer that makes the logits from the spatial mean of a feature map, checked by value."""
    heads = [c for c in seen.calls if isinstance(c.module, nn.Linear) or getattr(c.module, "kernel_size", 0) == (1, 1)]
    head = heads[-1] if heads else None
    if head is None or seen.logits is None or not isinstance(head.inputs[0], Tensor):
        return None, "it has no linear classifier"
    if head.tensor.flatten(1).shape != seen.logits.shape or not torch.allclose(head.tensor.flatten(1), seen.logits):
        return None, "its logits are not the output of one linear layer"
    pooled = head.inputs[0]
    if pooled.ndim > 2 and pooled.shape[-2:] != (1, 1):
        return None, "its classifier is not applied to globally averaged features"
    pooled = pooled.flatten(1)
    for call in reversed([c for c in calls if c.means]):
        nhwc = call.tensor.ndim == 4 and find_layout(call.tensor.shape, size) == "nhwc"
        mean = call.means[-1] if nhwc else call.means[0]
        if mean.shape != pooled.shape:
            continue
        if equal(mean, pooled):
            return Classifier(_outermost(seen, call), head.path), ""
        # DenseNet's last ReLU is no module; written in place or not, the tensor's positive part is what it gives.
        axes = {"tokens": (1,), "nhwc": (1, 2), "nchw": (2, 3)}[
            "tokens" if call.tensor.ndim == 3 else "nhwc" if nhwc else "nchw"
        ]
        if equal(call.tensor.relu().mean(axes), pooled):
            return Classifier(_outermost(seen, call), head.path, rectified=True), ""
    if any(
        c.tensor.ndim == 3 and c.tensor.shape[-1] == pooled.shape[-1] and _has_row(c.tensor, pooled) for c in seen.calls
    ):
        return None, "its classifier reads a class token, not a mean over positions (global average pooling)"
    return None, "its classifier does not read the plain mean of a feature map over positions (global average pooling)"


def _has_row(tokens: Tensor, row: Tensor) -> bool:
    """Whether one token of (B,N,C) is the (B,C) row."""
    return tokens.shape[0] == row.shape[0] and bool(((tokens - row[:, None]).abs().amax((0, 2)) == 0).any())


def _traced(source: Source) -> Trace:
    """The probing pass, or an error that says that the model does not run."""
    try:
        return trace(source)
    except UnsupportedModelError:
        raise
    except Exception as error:
        h, w = source.preprocessing.size
        raise UnsupportedModelError(f"{source.name} does not run on ({BATCH}, 3, {h}, {w}): {error}") from error


def _family_and_layer(
    seen: Trace, attention: AttentionLayout, stages: tuple[str, ...]
) -> tuple[Family, str | None, tuple[str, ...]]:
    """(family, default feature layer, stages)."""
    over_tokens = [path for path in attention.blocks if path not in attention.readers]
    inputs = [_attention_input(seen, path) for path in over_tokens]
    fed = None if not over_tokens else seen.call_of(over_tokens[-1])
    if attention.tokens is not None and fed is not None and fed.fed is not None and fed.fed.ndim == 3:
        return "vit", inputs[-1] or (stages[-1] if stages else None), tuple(path for path in inputs if path)
    plain = attention.missing.get(Signal.CLASS_ATTENTION) == NO_ATTENTION or (
        attention.blocks and not attention.readers
    )
    return ("cnn" if plain else "hierarchical"), (stages[-1] if stages else None), stages


def probe(source: Source) -> Anatomy:
    """The anatomy of a model, from one forward pass; `source.known` overrides what it finds.

    Raises UnsupportedModelError when the model does not run or nothing in it lies on the image.
    """
    seen, size = _traced(source), source.preprocessing.size
    known: Mapping[str, object] = source.known
    given = known.get("tokens")
    given = given if isinstance(given, TokenLayout) else None
    sequences = _sequences(seen, source) if given is None else []
    with torch.inference_mode(False), torch.enable_grad():
        attention = find_attention(seen, source, given, sequences)
        reduced = (TokenLayout(0, block.geometry.query_grid) for block in attention.windows)
        sequences = list({layout.length: layout for layout in (*reduced, *sequences)}.values())
        if attention.tokens is not None:
            sequences = [s for s in sequences if s.length != attention.tokens.length]
        every = [*sequences, *([attention.tokens] if attention.tokens else [])]
        calls = [c for c in _candidates(seen, size) if find_layout(c.tensor.shape, size, every) is not None]
        family, layer, stages = _family_and_layer(seen, attention, _stages(seen, calls, source, every))
    with torch.no_grad():
        prefixed = {layout.length for layout in every if layout.prefix}
        averaged = [c for c in calls if c.tensor.ndim == 4 or c.tensor.shape[1] not in prefixed]
        classifier, no_classifier = _classifier(seen, averaged, size)
        gates = tuple(Gate(call.path, call.gate) for call in seen.calls if call.gate)
    missing: dict[Signal, str] = dict(attention.missing)
    if classifier is None:
        no_classifier = (
            "its output is an embedding, and no linear layer on averaged features makes it"
            if source.embedding
            else no_classifier
        )
        missing |= dict.fromkeys((Signal.CLASSIFIER_WEIGHTS, Signal.POOLED_FEATURES), no_classifier)
    if classifier is not None and family != "vit":
        layer = classifier.features  # what CAM reads, so that CAM and Grad-CAM are of the same features
        stages = (*stages[:-1], layer)
    if not gates:
        reason = "no layer of it multiplies its channels by a gate each (squeeze-and-excitation, ECA, CBAM)"
        missing |= dict.fromkeys((Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES), reason)
    layer = str(known["feature_layer"]) if known.get("feature_layer") else layer
    if layer is None:
        reason = "no layer's output lies on the image"
        missing |= dict.fromkeys((Signal.FEATURES, Signal.FEATURE_GRADIENTS, Signal.FEATURE_LAYER), reason)
    for part, signals in GIVEN.items():  # what the user gives is no longer missing
        if known.get(part):
            missing = {signal: reason for signal, reason in missing.items() if signal not in signals}
    assert seen.logits is not None
    anatomy = Anatomy(
        family,
        layer,
        tokens=attention.tokens,
        attention_blocks=attention.blocks,
        readers=attention.readers,
        attention_tokens=attention.attention_tokens,
        windows=attention.windows,
        sequences=tuple(sequences),
        classifier=classifier,
        gates=gates,
        stages=stages,
        missing=missing,
        outputs=int(seen.logits.shape[1]),
    )
    return replace(anatomy, **{key: value for key, value in known.items() if value is not None})  # type: ignore[arg-type]
