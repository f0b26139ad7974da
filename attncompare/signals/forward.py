"""The model as a module, for Captum."""

from torch import nn

from attncompare.capture.extra_pass import ExtraPass
from attncompare.signals._base import Signal, signal


@signal(cost="extra", inside=False)
class Forward(Signal):
    """nn.Module: images -> (B,K) scores; its passes are counted."""

    def run(self, extra: ExtraPass) -> nn.Module:
        return extra.forward
