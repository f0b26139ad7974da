"""The images."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.signals._base import Signal, signal


@signal(cost="free")
class Images(Signal):
    """(B,3,H,W) float32 RGB in [0, 1]."""

    def read(self, of: ForwardPass) -> Tensor:
        return of.images.detach()
