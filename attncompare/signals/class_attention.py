"""The attention that the class score is read from."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared")
class ClassAttention(Signal):
    """L x (B,heads,N) the attention row(s) that the class score is read from."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("class_attention")

    def attach(self, hooks: Hooks) -> None:
        hooks.attention.rows = True

    def read(self, of: ForwardPass) -> list[Tensor]:
        return of.hooks.attention.rows_read()
