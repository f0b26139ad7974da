"""What a channel-attention layer multiplies."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks, se_layer_of
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import GATE, Signal, signal


@signal(cost="shared", options=(GATE,))
class GatedFeatures(Signal):
    """(B,C,h,w) the features that the gates of a channel-attention layer multiply."""

    gate: int = -1

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("se_layers")

    def attach(self, hooks: Hooks) -> None:
        hooks.ends.add((se_layer_of(hooks.model, self.gate).layer, "input"))

    def read(self, of: ForwardPass) -> Tensor:
        return of.hooks.tensors[se_layer_of(of.model, self.gate).layer, "input"]
