"""Find squeeze-and-excitation layers: modules whose input times the gate values inside is their output."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.inspection.calls import Call, equal
from attncompare.inspection.structure import SELayer


def gate_of(path: str, x: object, output: Tensor, calls: Sequence[Call]) -> tuple[str | None, bool]:
    """(path of the gate, whether its values are steady) of a module that just turned `x` into `output`.

    The gate is the module inside `path` that made one value per channel by which `x` was multiplied. Its values are
    steady if they were the same for both images, as those of a learned scale are. calls: the calls that have finished.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape != output.shape or x is output:
        return None, False
    for inner in reversed(calls):
        if not inner.path.startswith(path + "."):
            return None, False
        values = inner.output.values
        if values is None or values.numel() != x.shape[0] * x.shape[1]:
            continue
        if not 0 <= float(values.min()) <= float(values.max()) <= 1:
            continue
        if equal(x * values.reshape(x.shape[0], -1, 1, 1), output):
            return inner.path, torch.equal(values[0], values[1])
    return None, False


def find_se_layers(calls: list[Call]) -> tuple[SELayer, ...]:
    """Layers that multiply their channels by gates; of those with one gate the first, and only modules that run once."""
    runs = Counter(call.path for call in calls)
    layers: dict[str, SELayer] = {}
    for call in calls:
        if call.gate and runs[call.path] == runs[call.gate] == 1:
            layers.setdefault(call.gate, SELayer(call.path, call.gate))
    return tuple(layers.values())
