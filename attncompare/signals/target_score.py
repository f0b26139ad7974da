"""The target's probability on altered images."""

from collections.abc import Callable

from torch import Tensor

from attncompare.capture.extra_pass import ExtraPass
from attncompare.signals._base import Signal, signal


@signal(cost="extra", inside=False)
class TargetScore(Signal):
    """Function of altered images (n,3,H,W) and the image (n,) each one is a copy of -> (n,) probability of its target."""

    def run(self, extra: ExtraPass) -> Callable[[Tensor, Tensor], Tensor]:
        return extra.forward.target_score
