"""The gradient of the score with respect to the feature layer."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import LAYER, Signal, signal


@signal(cost="shared", backward=True, options=(LAYER,))
class FeatureGradients(Signal):
    """(B,C,h,w) d target score / d features."""

    layer: str | None = None

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("feature_layer")

    def attach(self, hooks: Hooks) -> None:
        hooks.layers.add(self.layer)

    def sources(self, of: ForwardPass) -> list[Tensor]:
        return [of.features[self.layer]]

    def read(self, of: ForwardPass) -> Tensor:
        return of.gradients[self][0]
