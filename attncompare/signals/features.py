"""What the feature layer returns."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import LAYER, Signal, signal


@signal(cost="shared", options=(LAYER,))
class Features(Signal):
    """(B,C,h,w) output of the feature layer."""

    layer: str | None = None

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("feature_layer")

    def attach(self, hooks: Hooks) -> None:
        hooks.layers.add(self.layer)

    def read(self, of: ForwardPass) -> Tensor:
        return of.features[self.layer].detach()
