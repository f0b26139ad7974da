"""Relevance of every block's attention: a pass under the rules of `backward.transformer_lrp`, with the recorder."""

import copy
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncompare.backward.transformer_lrp import transformer_lrp
from attncompare.capture.attention import AttentionRecorder
from attncompare.capture.extra_pass import ExtraPass
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.models.same_outputs import check_same_outputs
from attncompare.signals._base import Signal, signal
from attncompare.signals.scores import Scores
from attncompare.state import disable_mha_fastpath


@signal(cost="extra")
class AttentionRelevance(Signal):
    """L x (B,heads,N,N) relevance of the target score at each block's attention (LRP).

    A class target starts with relevance 1 at its logit; another score with each output's part of it, output x gradient: with
    the gradient alone the relevance of a difference of two logits would cancel on its way down.
    The rules divide by sums that may cancel, so the pass is in float64, on a copy of the model.
    """

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("attention") or model.lacks("token_blocks")

    def takes(self, model: ModelAdapter, target: object) -> tuple[Signal, ...]:
        return (Scores(),)

    def run(self, extra: ExtraPass) -> list[Tensor]:
        model, score, scores = extra.model, extra.recorded.score, extra.recorded.signals[Scores()]
        assert isinstance(scores, Tensor)
        precise = replace(model, source=replace(model.source, module=copy.deepcopy(model.module).double()))
        try:
            raw, attention, recorder = _pass(precise, extra.images.double())
        except RuntimeError as error:
            if "dtype" not in str(error) and "Double" not in str(error):
                raise
            raise CaptureError(
                f"relevance is computed in float64, which {model.name} does not allow: {error}"
            ) from error
        output = raw.detach().float().requires_grad_(True)
        what = f"relevance rules change the logits of {model.name}"
        check_same_outputs(scores, score.outputs(output.detach()), what, "; its maps would be wrong")
        seed = extra.gradient(score.score(output), output)
        seed = seed if score.of_classes else seed * output.detach()
        found = torch.autograd.grad(raw, attention, seed.double())
        extra.forward.add(1.0, 1.0)
        relevance = recorder.gradients(one.float() for one in found)
        extra.refuse_silent(self.name, relevance)
        return relevance


def _pass(model: ModelAdapter, images: Tensor) -> tuple[Tensor, list[Tensor], AttentionRecorder]:
    """Outputs (B,K) and every block's attention in the graph of one pass under the rules."""
    recorder = AttentionRecorder(model, full=True)
    first = model.module.get_submodule(model.structure.token_blocks[0])

    def start(module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].detach().requires_grad_(True), *args[1:])

    with ExitStack() as stack:
        stack.enter_context(disable_mha_fastpath())
        stack.callback(first.register_forward_pre_hook(start).remove)
        stack.enter_context(transformer_lrp())
        stack.enter_context(recorder.active())
        raw = model.forward(images)
    return raw, recorder.listed(recorder.blocks), recorder
