"""The scores of the clean images where they belong to classes."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.errors import UnsupportedMethodError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared", inside=False)
class ClassScores(Signal):
    """(B,K) every output of `forward` on the clean images, each of them a class."""

    def missing(self, model: ModelAdapter) -> str:
        return "its output is an embedding; it has no classes" if model.embedding else ""

    def read(self, of: ForwardPass) -> Tensor:
        if of.score.function is not None:
            raise UnsupportedMethodError(f"{self.name} belong to a class; the target is a function of several outputs")
        return of.score.outputs(of.logits)
