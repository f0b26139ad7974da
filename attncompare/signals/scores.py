"""The scores of the clean images."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.signals._base import Signal, signal


@signal(cost="shared", inside=False)
class Scores(Signal):
    """(B,K) every output of `forward` on the clean images."""

    def read(self, of: ForwardPass) -> Tensor:
        return of.score.outputs(of.logits)
