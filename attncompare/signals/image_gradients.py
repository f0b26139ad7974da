"""The gradient of the score with respect to the images."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.signals._base import Signal, signal


@signal(cost="shared", backward=True, bounded=True, inside=False)
class ImageGradients(Signal):
    """(B,3,H,W) d target score / d images."""

    def attach(self, hooks: Hooks) -> None:
        hooks.down_to_images = True

    def sources(self, of: ForwardPass) -> list[Tensor]:
        return [of.images]

    def read(self, of: ForwardPass) -> Tensor:
        return of.gradients[self][0]
