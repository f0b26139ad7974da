"""The attention of every block, its heads fused."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.models.adapter import ModelAdapter
from attncompare.registry import Option
from attncompare.signals._base import Signal, signal

HEAD_FUSION = Option(
    "head_fusion", "mean", ("mean", "max", "min"), "how the heads of a block are fused; the paper's is mean", str
)


@signal(cost="shared", options=(HEAD_FUSION,))
class FusedAttention(Signal):
    """L x (B,N,N) attention, heads fused."""

    head_fusion: str = "mean"

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("attention")

    def attach(self, hooks: Hooks) -> None:
        hooks.attention.head_fusions.add(self.head_fusion)

    def read(self, of: ForwardPass) -> list[Tensor]:
        return of.hooks.attention.listed(of.hooks.attention.fused.get(self.head_fusion, {}))
