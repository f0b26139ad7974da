"""The attention of every block over all tokens."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared")
class Attention(Signal):
    """L x (B,heads,N,N) after softmax."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("attention")

    def attach(self, hooks: Hooks) -> None:
        hooks.attention.full = True

    def read(self, of: ForwardPass) -> list[Tensor]:
        return of.hooks.attention.attention()
