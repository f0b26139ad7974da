"""Gradients by guided backpropagation."""

from torch import Tensor

from attncompare.backward.guided import guided
from attncompare.capture.counting_forward import CountingForward
from attncompare.capture.extra_pass import ExtraPass
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="extra")
class GuidedGradients(Signal):
    """(B,3,H,W) d target score / d images, ReLUs passing positive gradients only."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("relus")

    def run(self, extra: ExtraPass) -> Tensor:
        images, score = extra.images.detach().requires_grad_(True), extra.recorded.score
        scores = CountingForward(extra.model, score).under(guided(), images)
        found = extra.gradient(scores.gather(1, score.target[:, None])[:, 0], images)
        extra.forward.add(1.0, 1.0)
        extra.refuse_silent(self.name, [found])
        return found
