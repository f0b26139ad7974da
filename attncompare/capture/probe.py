"""Find a model's anatomy by running it once: feature layer, token layout, attention, classifier and gates.

Nothing is guessed from names or square roots: a module counts as a gate because its input times the gate values equals
its output, as a classifier because its input equals the mean of a feature map, as a feature layer because the score
depends on it, and the read-out row is the one that the logits depend on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncompare.adapters.base import Anatomy, Classifier, Family, Gate, ModelAdapter, Source
from attncompare.capture.attention import slow_attention_path
from attncompare.capture.attention_layout import HEADS, NO_ATTENTION, AttentionLayout, find_attention, score_gradients
from attncompare.capture.capture import left_as_found
from attncompare.capture.features import Layout, find_layout, token_grid
from attncompare.capture.trace import BATCH, Call, Trace, equal, trace
from attncompare.errors import UnsupportedModelError
from attncompare.signals import Signal, TokenLayout

POOLERS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
GIVEN = {
    "classifier": (Signal.CLASSIFIER_WEIGHTS, Signal.POOLED_FEATURES),
    "gates": (Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES),
}
MOST_ADDED = 64  # prefix tokens before a grid
STRIPES, STEP = 4, 0.05  # a small step: in deep random networks a large one moves everything
CHANCE = 1e-3  # largest change of one image's output between passes, relative
CLEARLY, ENOUGH = 1.2, 0.2  # factor over the next stripe; least share of places that answer so
MOST, MANY, HALF = 0.9, 0.7, 0.5  # shares of places that answer to their own stripes
LEAST = 0.3  # no share below it is a measure: chance gives 1 in 16
INTO = "into "  # key of what goes into a module, beside that of what comes out
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
    runs = Counter(call.path for call in seen.calls)
    # Inside an attention module (N x N) weights can look like an image, and projections are no features.
    attentions = tuple(c.path + "." for c in seen.calls if _is_attention(c) and not c.gate)
    return [
        call
        for call in seen.calls
        if call.direct
        and call.tensor.ndim in (3, 4)
        and call.tensor.shape[0] == BATCH
        and not isinstance(call.module, POOLERS)
        and runs[call.path] == 1  # which run of several is meant is not defined
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


class _Changes:
    """How much every layer's output changes, place by place, where a stripe of a noise image changes a little.

    Four horizontal and four vertical stripes. What lies on the image answers most to its own stripes: this tells rows
    from columns, a grid from its mirror image, and a sequence from itself shifted by a token.
    """

    def __init__(self, source: Source, paths: list[str]) -> None:
        adapter, (height, width) = ModelAdapter(source, Anatomy("cnn", None)), source.preprocessing.size
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(3, height, width, generator=generator)
        other = (image + STEP * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        images = image.repeat(1 + 2 * STRIPES, 1, 1, 1)
        for stripe in range(STRIPES):
            rows, columns = (
                slice(side * stripe // STRIPES, side * (stripe + 1) // STRIPES) for side in (height, width)
            )
            images[1 + stripe, :, rows] = other[:, rows]
            images[1 + STRIPES + stripe, :, :, columns] = other[:, :, columns]
        self.found: dict[str, tuple[Tensor, ...]] = {}  # over channels: the last axis, or the second and the last
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(left_as_found(source.model))
            stack.enter_context(slow_attention_path())
            for path in paths:
                module = source.model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(self._listener(path), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._keeper(path)).remove)
            adapter.forward(images.to(adapter.device))

    def _keeper(self, path: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, args: object, output: object) -> None:
            self._keep(path, output[0] if isinstance(output, tuple) else output)

        return keep

    def _listener(self, path: str) -> Callable[[nn.Module, tuple[object, ...], Mapping[str, object]], None]:
        def listen(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object]) -> None:
            self._keep(INTO + path, next((x for x in (*args, *options.values()) if isinstance(x, Tensor)), None))

        return listen

    def _keep(self, key: str, seen: object) -> None:
        if isinstance(seen, Tensor) and seen.is_floating_point() and len(seen) == 1 + 2 * STRIPES:
            change = (seen[1:] - seen[:1]).abs()
            self.found[key] = tuple(change.mean(axis).float() for axis in {3: (-1,), 4: (1, -1)}.get(seen.ndim, ()))

    def in_place(self, path: str, layout: Layout) -> float | None:
        """The share of places that answer most to the stripes they lie in, if the output has that layout."""
        change = self.found.get(path)
        if not change:
            return None
        if isinstance(layout, TokenLayout):
            return _in_place(layout.to_grid(change[0])) if change[0].shape[1] == layout.length else None
        return _in_place(change[0 if layout == "nchw" else -1])

    def turned(self, path: str, layout: Layout) -> bool:
        """Whether a 4-D output lies on the image mirrored or transposed, or with its channels on another axis."""
        change, share = self.found.get(path), self.in_place(path, layout)
        if not change or isinstance(layout, TokenLayout) or share is None or share >= HALF:
            return False
        plain, other = change if layout == "nchw" else change[::-1]
        if min(plain.shape[1:]) < STRIPES:  # too coarse to tell
            return False
        turned = [
            plain.flip(1),
            plain.flip(2),
            plain.flip(1, 2),
            plain.transpose(1, 2),
            plain.transpose(1, 2).flip(1, 2),
        ]
        return max((_in_place(x) or 0.0) for x in (*turned, other)) >= MANY


def _in_place(change: Tensor) -> float | None:
    """(8,h,w) changes by four horizontal and four vertical stripes: the share of places that answer most to their own.

    Counted are places that answer clearly to one stripe of each kind and that no border between stripes runs through;
    None where they are too few to tell, as in the depth of a random network.
    """
    right = torch.ones(change.shape[1:], dtype=torch.bool)
    known = right.clone()
    for part, axis in ((change[:STRIPES], 0), (change[STRIPES:], 1)):
        cells = part.shape[1 + axis]
        if cells < STRIPES:  # too coarse for a quarter: halves
            part = part.reshape(2, STRIPES // 2, *part.shape[1:]).amax(1)
        first, last = torch.arange(cells) * len(part) // cells, ((torch.arange(cells) + 1) * len(part) - 1) // cells
        shape = (-1, 1) if axis == 0 else (1, -1)
        largest, second = part.cpu().topk(2, dim=0).values
        known &= (first == last).reshape(shape) & (largest > CLEARLY * second)
        right &= part.argmax(dim=0).cpu() == first.reshape(shape)
    return float(right[known].float().mean()) if float(known.float().mean()) >= ENOUGH else None


def _sequences(changes: _Changes, seen: Trace, calls: list[Call], size: Grid) -> tuple[list[TokenLayout], set[int]]:
    """(how sequences of tokens lie on the image, row by row behind a few prefix tokens; lengths that lie in no such way).

    The grid is the one with the image's aspect ratio, or that of a convolution or shorter sequence when tokens were
    added. It is checked by value: the first sequence of that length, going into a module or coming out of one, whose
    tokens answer clearly must answer nearly all to their own place of the image, and most of the others mostly.
    """
    lengths: dict[str, int] = {}
    for call in seen.calls:
        fed = call.fed
        if fed is not None and fed.ndim == 3 and fed.shape[0] == BATCH:
            lengths[INTO + call.path] = int(fed.shape[1])
        if call.tensor.ndim == 3 and call in calls:
            lengths[call.path] = int(call.tensor.shape[1])
    spatial = [_grid_of(c, size, ()) for c in calls if c.tensor.ndim == 4]
    grids = [grid for grid in dict.fromkeys([*spatial, *(token_grid(n, size) for n in lengths.values())]) if grid]
    shares: dict[TokenLayout, list[float]] = {}
    for key, length in lengths.items():
        for layout in _possible(length, size, grids):
            share = changes.in_place(key, layout)
            if share is not None:
                shares.setdefault(layout, []).append(share)
    convolved: dict[
        Grid | None, float
    ] = {}  # strided convolutions see a little to one side: their share is the measure
    for call, grid in zip([c for c in calls if c.tensor.ndim == 4], spatial, strict=True):
        share = changes.in_place(call.path, find_layout(call.tensor.shape, size) or "nchw")
        convolved[grid] = max(share or 0.0, convolved.get(grid, 0.0))
    right = []
    for layout, found in shares.items():
        best = max(convolved.get(layout.grid, 0.0), LEAST) if layout.grid in convolved else 1.0
        if found[0] >= MOST * best and sorted(found)[len(found) // 2] >= MANY * best:
            right.append(layout)
    right = [layout for layout in right if sum(other.length == layout.length for other in right) == 1]
    return right, set(lengths.values()) - {layout.length for layout in right}


def _possible(tokens: int, size: Grid, grids: list[Grid]) -> list[TokenLayout]:
    """The layouts that a sequence of that length may have."""
    whole = token_grid(tokens, size)
    if whole is not None:
        return [TokenLayout(0, whole)]
    return [TokenLayout(tokens - h * w, (h, w)) for h, w in grids if 0 < tokens - h * w <= MOST_ADDED]


def _attention_input(seen: Trace, block: str) -> str | None:
    """The module whose output feeds the last attention block: its norm, where patch gradients are not yet zero."""
    call = seen.call_of(block)
    fed = None if call is None else call.fed
    if fed is None or fed.shape[0] != BATCH:
        return None
    return next((c.path for c in seen.calls if c.tensor is fed and c.direct), None)


def _classifier(seen: Trace, calls: list[Call], size: Grid) -> tuple[Classifier | None, str]:
    """A linear layer that makes the logits from the spatial mean of a feature map, checked by value."""
    heads = [c for c in seen.calls if isinstance(c.module, nn.Linear) or getattr(c.module, "kernel_size", 0) == (1, 1)]
    head = heads[-1] if heads else None
    pooled = None if head is None else head.fed
    weight = None if head is None else getattr(head.module, "weight", None)
    if head is None or seen.logits is None or pooled is None or not isinstance(weight, Tensor):
        return None, "it has no linear classifier"
    if pooled.ndim > 2 and pooled.shape[-2:] != (1, 1):
        return None, "its classifier is not applied to globally averaged features"
    pooled, weight = pooled.flatten(1), weight.flatten(1)
    if weight.shape != (seen.logits.shape[1], pooled.shape[1]) or pooled.shape[0] != len(seen.logits):
        return None, "its logits are not the output of one linear layer"
    bias = getattr(head.module, "bias", None)
    # By its weights: a layer derived from nn.Linear may do more.
    if not equal(F.linear(pooled, weight, bias).float(), seen.logits.float()):
        return None, "its logits are not the output of one linear layer"
    for call in reversed([c for c in calls if c.means]):
        tokens, nhwc = call.tensor.ndim == 3, find_layout(call.tensor.shape, size) == "nhwc"
        if call.means[-1 if nhwc else 0].shape != pooled.shape:
            continue
        if equal(call.means[-1 if nhwc else 0], pooled):
            return Classifier(_outermost(seen, call), head.path), ""
        # DenseNet's last ReLU is no module; written in place or not, the tensor's positive part is what it gives.
        if equal(call.tensor.relu().mean((1,) if tokens else (1, 2) if nhwc else (2, 3)), pooled):
            return Classifier(_outermost(seen, call), head.path, rectified=True), ""
    if any(
        c.tensor.ndim == 3 and c.tensor.shape[-1] == pooled.shape[-1] and _has_row(c.tensor, pooled) for c in seen.calls
    ):
        return None, "its classifier reads a class token, not a mean over positions (global average pooling)"
    return None, "its classifier does not read the plain mean of a feature map over positions (global average pooling)"


def _has_row(tokens: Tensor, row: Tensor) -> bool:
    """Whether one token of (B,N,C) is the (B,C) row."""
    return tokens.shape[0] == row.shape[0] and bool(((tokens - row[:, None]).abs().amax((0, 2)) == 0).any())


def _refuse_chance(seen: Trace, source: Source) -> None:
    """Raise UnsupportedModelError when the output for an image changes with the random state or the rest of the batch."""
    assert seen.logits is not None and seen.images is not None
    other = torch.rand(seen.images.shape, generator=torch.Generator().manual_seed(1)).to(seen.images)
    images = torch.cat([seen.images[:1].detach(), other[1:]])
    with torch.no_grad(), left_as_found(source.model), slow_attention_path():
        torch.manual_seed(1)
        again = ModelAdapter(source, Anatomy("cnn", None)).forward(images)
    first = seen.logits[0].detach()
    if float((again[0] - first).abs().max()) > CHANCE * max(float(first.abs().max()), 1e-6):
        raise UnsupportedModelError(
            f"{source.name} gives one image another output in another pass: it draws random numbers, or mixes the images "
            "of a batch; in evaluation mode it must do neither"
        )


def _gates(seen: Trace) -> tuple[Gate, ...]:
    """Layers that multiply their channels by gates, each once, whose modules run once."""
    runs = Counter(call.path for call in seen.calls)
    found: dict[str, Gate] = {}
    for call in seen.calls:
        if call.gate and runs[call.path] == runs[call.gate] == 1:
            found.setdefault(call.gate, Gate(call.path, call.gate))
    return tuple(found.values())


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
    try:
        return _anatomy(source)
    except UnsupportedModelError:
        raise
    except Exception as error:  # a user's module may do anything
        h, w = source.preprocessing.size
        raise UnsupportedModelError(
            f"{source.name} does not run on ({BATCH}, 3, {h}, {w}), or what it does there cannot be followed: {error}"
        ) from error


def _anatomy(source: Source) -> Anatomy:
    """As `probe`; what the model raises passes through."""
    seen, size = trace(source), source.preprocessing.size
    _refuse_chance(seen, source)
    known: Mapping[str, object] = source.known
    given = known.get("tokens")
    given = given if isinstance(given, TokenLayout) else None
    candidates = _candidates(seen, size)
    changes = _Changes(source, list(dict.fromkeys(c.path for c in seen.calls)))
    sequences, misplaced = _sequences(changes, seen, candidates, size) if given is None else ([], set())
    with torch.inference_mode(False), torch.enable_grad():
        attention = find_attention(seen, source, given, sequences, misplaced)
        reduced = (TokenLayout(0, block.geometry.query_grid) for block in attention.windows)
        sequences = list({layout.length: layout for layout in (*reduced, *sequences)}.values())
        if attention.tokens is not None:
            sequences = [s for s in sequences if s.length != attention.tokens.length]
        every = [*sequences, *([attention.tokens] if attention.tokens else [])]
        layouts = [find_layout(c.tensor.shape, size, every) for c in candidates]
        calls = [c for c, found in zip(candidates, layouts, strict=True) if found and not changes.turned(c.path, found)]
        family, layer, stages = _family_and_layer(seen, attention, _stages(seen, calls, source, every))
    with torch.no_grad():
        prefixed = {layout.length for layout in every if layout.prefix}
        averaged = [c for c in calls if c.tensor.ndim == 4 or c.tensor.shape[1] not in prefixed]
        classifier, no_classifier = _classifier(seen, averaged, size)
        gates = _gates(seen)
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
        reason = "no module of it returns gates that multiply its channels (squeeze-and-excitation, ECA, CBAM)"
        missing |= dict.fromkeys((Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES), reason)
    layer = str(known["feature_layer"]) if known.get("feature_layer") else layer
    if layer is None:
        reason = "no layer whose output lies on the image, row by row and once per pass, leads to its score"
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
