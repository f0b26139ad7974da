"""How the score of each block's own tokens answers to that block's attention (LeGrad)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from attncompare.capture.capture import Capture
from attncompare.capture.recorders import AttentionRecorder, Need
from attncompare.capture.replay import Replay
from attncompare.capture.state import disable_mha_fastpath
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import Signal


@contextmanager
def _cut_between(model: nn.Module, blocks: tuple[str, ...], outputs: list[Tensor]) -> Iterator[None]:
    """Keep each block's output in its graph, and hand a detached copy on, so that no block's graph reaches another."""

    def leave(module: nn.Module, args: object, output: object) -> object:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor):
            raise CaptureError(f"a block returned {type(first).__name__}; tokens are needed")
        outputs.append(first)
        return (first.detach(), *output[1:]) if isinstance(output, tuple) else first.detach()

    with ExitStack() as stack:
        for path in blocks:
            stack.callback(model.get_submodule(path).register_forward_hook(leave).remove)
        yield


def block_gradients(
    adapter: ModelAdapter, images: Tensor, reference: Capture, need: Need
) -> tuple[list[Tensor], float, float]:
    """L x (B,heads,N,N) dy_l / dA_l, and the forward and backward passes made for them.

    y_l is the target score that the model's own norm, pooling and head read from the tokens behind block l. Each goes back
    through its own block only: the gradient of their sum would add to A_l what later blocks owe to it.
    """
    blocks = adapter.structure.token_blocks
    recorder = AttentionRecorder(adapter, [Need(Signal.ATTENTION_GRADIENTS)])
    outputs: list[Tensor] = []
    replay = Replay(adapter, blocks[-1])
    with disable_mha_fastpath(), _cut_between(adapter.model, blocks, outputs), recorder.active():
        logits = replay.record(images)
    with disable_mha_fastpath():
        replay.verify(logits.detach())
        attention = recorder.listed(recorder.blocks)
        if len(outputs) != len(attention):
            raise CaptureError(
                f"{len(outputs)} blocks ran in {adapter.name}, {len(attention)} attention maps were recorded"
            )
        found = [
            _gradient(replay, reference, tokens, weights) for tokens, weights in zip(outputs, attention, strict=True)
        ]
    return recorder.gradients(found), 1.0, 1.0


def _gradient(replay: Replay, reference: Capture, tokens: Tensor, weights: Tensor) -> Tensor:
    """(B,heads,N,N) gradient of the score read from `tokens` with respect to the attention behind them."""
    raw = replay.run(tokens, torch.arange(len(tokens), device=tokens.device))
    gradient: Tensor = torch.autograd.grad(reference.scored.score(raw).sum(), weights)[0]
    return gradient
