"""The mean color of a model's images."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.signals._base import Signal, signal


@signal(cost="free")
class MeanColor(Signal):
    """(3,) RGB in [0, 1], the color that the model's normalization maps to zero."""

    def read(self, of: ForwardPass) -> Tensor:
        return of.model.mean_color
