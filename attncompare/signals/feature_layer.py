"""The feature layer as a module, for Captum."""

from torch import nn

from attncompare.capture.extra_pass import ExtraPass
from attncompare.capture.feature_hook import FeatureHook
from attncompare.capture.hooks import layer_of
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import LAYER, Signal, signal


@signal(cost="extra", options=(LAYER,))
class FeatureLayer(Signal):
    """nn.Identity whose output is the features (B,C,h,w), whenever `forward` runs."""

    layer: str | None = None

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("feature_layer")

    def run(self, extra: ExtraPass) -> nn.Module:
        model, forward, repeat = extra.model, extra.forward, extra.recorded.repeat
        forward.hook = FeatureHook(layer_of(model, self.layer), model.size, model.token_layouts, forward.watch, repeat)
        return forward.hook.identity
