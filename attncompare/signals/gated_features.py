"""What a channel-attention layer multiplies."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks, gate_index
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import GATE, Signal, signal


@signal(cost="shared", options=(GATE,))
class GatedFeatures(Signal):
    """(B,C,h,w) the features that the gates of a channel-attention layer multiply."""

    gate: int = -1

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("se_layers")

    def attach(self, hooks: Hooks) -> None:
        hooks.gates.add(self.gate)

    def read(self, of: ForwardPass) -> Tensor:
        return of.hooks.outputs.inputs[of.model.structure.se_layers[gate_index(of.model, self.gate)].layer]
