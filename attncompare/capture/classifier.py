"""Find the linear layer that reads globally averaged features, checked by value."""

import torch.nn.functional as F
from torch import Tensor, nn

from attncompare.adapters.base import Classifier
from attncompare.capture.features import find_layout
from attncompare.capture.placement import Grid
from attncompare.capture.trace import Call, Trace, equal


def outermost(seen: Trace, call: Call) -> str:
    """Of the modules that return this very tensor the outermost, and of its equals the last to touch it.

    One that runs once, where there is one: a tap keeps the last of several runs (VOLO's dropout before both its heads).
    """
    same = [
        (sum(c.path == other.path for other in seen.calls) > 1, c.path.count("."), -order, c.path)
        for order, c in enumerate(seen.calls)
        if c.tensor is call.tensor and c.direct
    ]
    return min(same)[3]


def find_classifier(seen: Trace, calls: list[Call], size: Grid) -> tuple[Classifier | None, str]:
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
        nhwc = find_layout(call.tensor.shape, size) == "nhwc"
        if call.means[-1 if nhwc else 0].shape != pooled.shape:
            continue
        if equal(call.means[-1 if nhwc else 0], pooled):
            return Classifier(outermost(seen, call), head.path), ""
        if equal(call.positive_means[-1 if nhwc else 0], pooled):  # DenseNet's last ReLU is no module
            return Classifier(outermost(seen, call), head.path, rectified=True), ""
    if any(
        c.tensor.ndim == 3 and c.tensor.shape[-1] == pooled.shape[-1] and _has_row(c.tensor, pooled) for c in seen.calls
    ):
        return None, "its classifier reads a class token, not a mean over positions (global average pooling)"
    return None, "its classifier does not read the plain mean of a feature map over positions (global average pooling)"


def _has_row(tokens: Tensor, row: Tensor) -> bool:
    """Whether one token of (B,N,C) is the (B,C) row."""
    return tokens.shape[0] == row.shape[0] and bool(((tokens - row[:, None]).abs().amax((0, 2)) == 0).any())
