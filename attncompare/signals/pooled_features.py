"""What global average pooling reads."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared")
class PooledFeatures(Signal):
    """(B,C,h,w) what global average pooling reads, before a linear classifier."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("classifier")

    def attach(self, hooks: Hooks) -> None:
        assert hooks.model.structure.classifier is not None
        hooks.layers.add(hooks.model.structure.classifier.feature_module)

    def read(self, of: ForwardPass) -> Tensor:
        classifier = of.model.structure.classifier
        assert classifier is not None
        pooled = of.features[classifier.feature_module].detach()
        return pooled.relu() if classifier.rectified else pooled
