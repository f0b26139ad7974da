"""Find feature layers: modules whose output lies on the image and matters to the score."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attncompare.inspection.calls import BATCH, Call, equal
from attncompare.inspection.graph import Graph
from attncompare.inspection.layout import TokenLayout, find_layout
from attncompare.inspection.spatial import Grid, grid_of
from attncompare.inspection.trace import Trace

HEADS = ("num_heads", "num_attention_heads")  # attributes by which attention modules are recognized
POOLERS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)


def find_candidates(trace: Trace) -> list[Call]:
    """Calls whose output may lie on the image, in order; pooling and reshaping modules aside."""
    # Inside an attention module (N x N) weights can look like an image, and projections are no features.
    attentions = tuple(c.path + "." for c in trace.calls if _is_attention(c) and not c.gate)
    return [
        call
        for call in trace.calls
        if call.direct
        and _may_lie_on_the_image(call.output.shape, trace.network.size)
        and not isinstance(call.module, POOLERS)
        and trace.runs[call.path] == 1  # which run of several is meant is not defined
        and not call.path.startswith(attentions)
    ]


def _may_lie_on_the_image(shape: torch.Size, size: Grid) -> bool:
    """Whether an output is a sequence, or a feature map of the image's aspect ratio; a single channel is a mask."""
    layout = find_layout(shape, size)
    is_map = layout is not None and shape[1 if layout == "nchw" else 3] > 1
    return shape[:1] == (BATCH,) and (len(shape) == 3 or is_map)


def _is_attention(call: Call) -> bool:
    name = type(call.module).__name__.lower()
    return "attention" in name or ("att" in name and any(hasattr(call.module, heads) for heads in HEADS))


def find_stages(graph: Graph, calls: list[Call], token_layouts: Iterable[TokenLayout]) -> tuple[str, ...]:
    """One layer per resolution, shallow to deep, of those calls on the image that the score depends on.

    On the last grid it is the last module to finish. On those before it is the outermost module, and the last of several
    as far out, because what opens the next stage still has the resolution of the stage before.
    """
    trace = graph.trace
    with torch.no_grad():
        calls = [c for c in calls if trace.network.embedding or not _is_score_map(graph, c)]
    calls = _reaching_the_score(graph, calls, token_layouts)
    if not calls:
        return ()
    paths_on: dict[Grid, list[str]] = {}
    for call in calls:
        paths_on.setdefault(grid_of(call, trace.network.size, token_layouts), []).append(trace.outermost(call))
    *_, last = paths_on.pop(grid_of(calls[-1], trace.network.size, token_layouts))
    earlier = [paths for _, paths in sorted(paths_on.items(), reverse=True)]
    return (*(min(reversed(paths), key=lambda path: path.count(".")) for paths in earlier), last)


def _is_score_map(graph: Graph, call: Call) -> bool:
    """Whether it holds one channel per class and no features: the logits are its mean, or a linear layer made it."""
    if len(call.output.shape) == 3 and isinstance(call.module, nn.Linear):
        return call.output.shape[-1] == graph.logits.shape[1]
    step = graph.step(call)
    mean = None if step is None else step.mean
    return mean is not None and mean.shape == graph.logits.shape and equal(mean, graph.logits)


def _strength(gradient: Tensor) -> Tensor:
    """(B,N,...) -> (N,): how strong a gradient is at each token of a sequence, or in each channel of a map."""
    return gradient.abs().transpose(0, 1).flatten(1).sum(1)


def _reaching_the_score(graph: Graph, calls: list[Call], token_layouts: Iterable[TokenLayout]) -> list[Call]:
    """Of calls that lie on the image those with a gradient of the score at an image position."""
    # What is the same for two images (a position embedding) shows nothing of them.
    calls = [c for c in calls if c.output.varies]
    prefixes = {layout.length: layout.prefix for layout in token_layouts}
    reaching = []
    for call, strength in zip(calls, graph.score_gradients(calls, _strength), strict=True):
        shape = call.output.shape
        # What only the class token's row of a sequence passes on is no evidence of any place.
        prefix = prefixes.get(shape[1], 0) if len(shape) == 3 else 0
        if strength is not None and bool(strength[prefix:].any()):
            reaching.append(call)
    return reaching
