"""The layout of the tokens."""

from attncompare.capture.forward_pass import ForwardPass
from attncompare.inspection.layout import TokenLayout
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="free")
class Tokens(Signal):
    """TokenLayout: how the rows and columns of attention lie on the image."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("class_attention")

    def read(self, of: ForwardPass) -> TokenLayout | None:
        return of.model.attention_tokens
