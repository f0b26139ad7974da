"""Whether a recorder of one's own reports the attention that a model computes, checked by value."""

from typing import Any

import torch
from torch import Tensor

from attncompare.errors import UnsupportedModelError
from attncompare.inspection.attention_calls import explicit_attention, hearing
from attncompare.inspection.calls import BATCH
from attncompare.inspection.structure import ModelStructure
from attncompare.inspection.trace import Trace
from attncompare.inspection.windows import attends_to_tokens

CLOSE = 1e-4  # of weights, which lie in [0, 1]


class _Listener:
    """Keeps the weights of each block; changes what one of them passes on."""

    def __init__(self, changed: int | None = None) -> None:
        self.running: list[int] = []
        self.weights: dict[int, Tensor] = {}
        self.changed = changed

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stand in for the fused kernel."""
        output, weights = explicit_attention(query, key, value, *args, **kwargs)
        self._keep(weights)
        return self._passed_on(output)

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Take weights that were computed."""
        self._keep(probabilities)
        return self._passed_on(probabilities)

    def _keep(self, weights: Tensor) -> None:
        if self.running:
            self.weights[self.running[-1]] = weights

    def _passed_on(self, x: Tensor) -> Tensor:
        if not self.running or self.running[-1] != self.changed:
            return x
        # Each value by another factor: what follows may scale its input, as a norm does.
        return x * (0.5 + torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x))


@torch.no_grad()
def check_recorder(trace: Trace, structure: ModelStructure) -> None:
    """UnsupportedModelError where what is reported of a block mixes images or tokens, or is not what the model goes on with.

    The order of tokens is checked where a block's module takes them as (B,N,C).
    """
    paths = [*structure.attention_blocks, *(block.path for block in structure.windows)]
    _, together = _run(trace, paths, BATCH)
    _, alone = _run(trace, paths, 1)
    square = {call.path: call for call in trace.attention if call.is_global and call.queries == call.keys}
    for index, path in enumerate(paths):
        if index not in together:
            raise _wrong(trace, path, "no attention")
        first = together[index][: len(together[index]) // BATCH]
        if first.shape != alone[index].shape or bool((first - alone[index]).abs().max() > CLOSE):
            raise _wrong(trace, path, "other weights for an image alone than in a batch: it mixes images or heads")
        call, tokens = square.get(path), trace.input_of(path)
        rows = call and tokens and len(tokens.shape) == 3 and tokens.shape[1] == call.keys
        if call and rows and not attends_to_tokens(trace, call):
            raise _wrong(trace, path, "weights whose rows and columns are not the tokens that go in, in their order")
        logits, _ = _run(trace, paths, BATCH, changed=index)
        if torch.equal(logits, trace.logits):
            raise _wrong(trace, path, "weights that the model does not go on with: use what the listener returns")


def _run(trace: Trace, paths: list[str], images: int, changed: int | None = None) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits, and the weights of each block, of the first images of the trace."""
    network, listener = trace.network, _Listener(changed)
    with hearing(listener, network.module, paths, network.attention):
        logits = network.forward(trace.images[:images])
    return logits, listener.weights


def _wrong(trace: Trace, path: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{trace.network.name}: of {path} the recorder given as attention= reports {what}")
