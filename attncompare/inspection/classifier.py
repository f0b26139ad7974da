"""Find the linear layer that reads globally averaged features, checked by value."""

import torch.nn.functional as F
from torch import Tensor, nn

from attncompare.inspection.graph import Graph
from attncompare.inspection.layout import find_layout
from attncompare.inspection.spatial import Grid
from attncompare.inspection.structure import Classifier
from attncompare.inspection.trace import Call, Note, Trace, equal, marks_of

ROUNDING = 1e-5  # relative


def outermost(seen: Trace, call: Call) -> str:
    """Of the modules that return this very tensor the outermost, and of its equals the last to touch it.

    One that runs once, where there is one: a hook keeps the last of several runs (VOLO's dropout before both its heads).
    """
    same = [
        (sum(c.path == other.path for other in seen.calls) > 1, c.path.count("."), -order, c.path)
        for order, c in enumerate(seen.calls)
        if c.output.number == call.output.number and c.direct
    ]
    return min(same)[3]


def find_classifier(seen: Trace, graph: Graph, calls: list[Call], size: Grid) -> tuple[Classifier | None, str]:
    """A linear layer that makes the logits from the spatial mean of a feature map, checked by value."""
    heads = [c for c in seen.calls if isinstance(c.module, nn.Linear) or getattr(c.module, "kernel_size", 0) == (1, 1)]
    head = heads[-1] if heads else None
    weight = None if head is None else getattr(head.module, "weight", None)
    if head is None or head.fed is None or not isinstance(weight, Tensor):
        return None, "it has no linear classifier"
    if len(head.fed.shape) > 2 and head.fed.shape[-2:] != (1, 1):
        return None, "its classifier is not applied to globally averaged features"
    given = graph.input(head)
    if given is None or given.flatten(1).shape[1:] != weight.flatten(1).shape[1:] or len(given) != len(graph.logits):
        return None, "its logits are not the output of one linear layer"
    pooled, bias = given.flatten(1), getattr(head.module, "bias", None)
    # By its weights: a layer derived from nn.Linear may do more.
    made = F.linear(pooled, weight.flatten(1), bias)
    if made.shape != graph.logits.shape or not equal(made.float(), graph.logits.float()):
        return None, "its logits are not the output of one linear layer"
    for call in reversed(calls):
        means, axis = graph.means_of(call), -1 if find_layout(call.output.shape, size) == "nhwc" else 0
        if not means.plain or means.plain[axis].shape != pooled.shape:
            continue
        if equal(means.plain[axis], pooled):
            return Classifier(outermost(seen, call), head.path), ""
        if equal(means.positive[axis], pooled):  # DenseNet's last ReLU is no module
            return Classifier(outermost(seen, call), head.path, rectified=True), ""
    if head.fed.values is not None and any(_has_row(c.output, head.fed.values.flatten(1)) for c in seen.calls):
        return None, "its classifier reads a class token, not a mean over positions (global average pooling)"
    return None, "its classifier does not read the plain mean of a feature map over positions (global average pooling)"


def _has_row(tokens: Note, row: Tensor) -> bool:
    """Whether one token of (B,N,C) is the (B,C) row, by their marks."""
    if tokens.marks is None or tokens.shape[-1] != row.shape[-1]:
        return False
    mark = marks_of(row)[:, None]
    return bool(((tokens.marks - mark).abs() <= ROUNDING * mark.abs()).all(0).any())
