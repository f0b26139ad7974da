"""The target."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.signals._base import Signal, signal


@signal(cost="free")
class Target(Signal):
    """(B,) int64, index of the explained output of `forward`."""

    def read(self, of: ForwardPass) -> Tensor:
        return of.score.target
