"""How the score of each block's own tokens answers to that block's attention (LeGrad)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from attncompare.capture.attention import AttentionRecorder
from attncompare.capture.extra_pass import ExtraPass
from attncompare.capture.replay import Replay
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal
from attncompare.state import disable_mha_fastpath


@signal(cost="extra")
class BlockGradients(Signal):
    """L x (B,heads,N,N) dy_l / dA_l, with y_l the target score that is read from the tokens behind block l.

    The model's own norm, pooling and head read it. Each goes back through its own block only: the gradient of their sum
    would add to A_l what later blocks owe to it.
    """

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("attention") or model.lacks("token_blocks")

    def run(self, extra: ExtraPass) -> list[Tensor]:
        recorder, outputs = AttentionRecorder(extra.model, full=True), list[Tensor]()
        blocks = extra.model.structure.token_blocks
        replay = Replay(extra.model, blocks[-1])
        with disable_mha_fastpath():
            with _cut_between(extra.model.module, blocks, outputs), recorder.active():
                logits = replay.record(extra.images)
            replay.verify(logits.detach())
            attention = recorder.listed(recorder.blocks)
            if len(outputs) != len(attention):
                raise CaptureError(
                    f"{len(outputs)} blocks ran in {extra.model.name}, {len(attention)} attention maps were recorded"
                )
            found = []
            for tokens, weights in zip(outputs, attention, strict=True):
                raw = replay.run(tokens, torch.arange(len(tokens), device=tokens.device))
                found.append(extra.gradient(extra.recorded.score.score(raw), weights))
        extra.forward.add(1.0, 1.0)
        gradients = recorder.gradients(found)
        extra.refuse_silent(self.name, gradients)
        return gradients


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
