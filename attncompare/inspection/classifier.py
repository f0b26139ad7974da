"""Find the linear layer that reads globally averaged features, checked by value."""

import torch.nn.functional as F
from torch import Tensor, nn

from attncompare.inspection.calls import Call, Note, equal, marks_of
from attncompare.inspection.graph import Graph
from attncompare.inspection.structure import Classifier

ROUNDING = 1e-5  # relative


def find_classifier(graph: Graph, calls: list[Call]) -> Classifier | str:
    """The linear layer that makes the logits from the spatial mean of one of the feature maps, or why there is none."""
    trace = graph.trace
    heads = [c for c in trace.calls if isinstance(c.module, nn.Linear) or getattr(c.module, "kernel_size", 0) == (1, 1)]
    head = heads[-1] if heads else None
    weight = None if head is None else getattr(head.module, "weight", None)
    if head is None or head.input is None or not isinstance(weight, Tensor):
        return "it has no linear classifier"
    if len(head.input.shape) > 2 and head.input.shape[-2:] != (1, 1):
        return "its classifier is not applied to globally averaged features"
    inputs = graph.input(head)
    pooled = None if inputs is None else inputs.flatten(1)
    if pooled is None or not _makes(graph.logits, pooled, weight.flatten(1), getattr(head.module, "bias", None)):
        return "its logits are not the output of one linear layer"
    for call in reversed(calls):
        step = graph.step(call)
        if step is None or step.mean is None or step.positive_mean is None or step.mean.shape != pooled.shape:
            continue
        if equal(step.mean, pooled):
            return Classifier(trace.outermost(call), head.path)
        if equal(step.positive_mean, pooled):  # DenseNet's last ReLU is no module
            return Classifier(trace.outermost(call), head.path, rectified=True)
    vectors = head.input.values
    if vectors is not None and any(_has_row(c.output, vectors.flatten(1)) for c in trace.calls):
        return "its classifier reads a class token, not a mean over positions (global average pooling)"
    return "its classifier does not read the plain mean of a feature map over positions (global average pooling)"


def _makes(logits: Tensor, pooled: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the logits are the weights times the pooled features: a layer derived from nn.Linear may do more."""
    if pooled.shape[1] != weight.shape[1]:
        return False
    product = F.linear(pooled, weight, bias)
    return product.shape == logits.shape and equal(product.float(), logits.float())


def _has_row(tokens: Note, row: Tensor) -> bool:
    """Whether one token of (B,N,C) is the (B,C) row, by their marks."""
    if tokens.marks is None or tokens.shape[-1] != row.shape[-1]:
        return False
    mark = marks_of(row)[:, None]
    return bool(((tokens.marks - mark).abs() <= ROUNDING * mark.abs()).all(0).any())
