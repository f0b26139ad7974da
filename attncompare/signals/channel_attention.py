"""The gates of a channel-attention layer."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks, se_layer_of
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import GATE, Signal, signal


@signal(cost="shared", options=(GATE,))
class ChannelAttention(Signal):
    """(B,C) gate values of a squeeze-and-excitation layer, in [0, 1]."""

    gate: int = -1

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("se_layers")

    def attach(self, hooks: Hooks) -> None:
        hooks.ends.add((se_layer_of(hooks.model, self.gate).values, "output"))

    def read(self, of: ForwardPass) -> Tensor:
        return of.hooks.tensors[se_layer_of(of.model, self.gate).values, "output"].flatten(1)
