"""The gradient of the score with respect to attention."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared", backward=True, bounded=True)
class AttentionGradients(Signal):
    """L x (B,heads,N,N) d target score / d attention."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("attention")

    def attach(self, hooks: Hooks) -> None:
        hooks.attention.full = True

    def sources(self, of: ForwardPass) -> list[Tensor]:
        return of.hooks.attention.listed(of.hooks.attention.blocks)

    def read(self, of: ForwardPass) -> list[Tensor]:
        return of.hooks.attention.gradients(of.gradients[self])
