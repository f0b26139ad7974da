"""The attention of a model all of which lies in windows."""

from attncompare.capture.attention import WindowRecorder
from attncompare.capture.forward_pass import ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.inspection.layout import WindowAttention as Windows
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared")
class AttentionHierarchy(Signal):
    """L x WindowAttention, of a model all of whose attention lies in windows on the image."""

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("hierarchy")

    def attach(self, hooks: Hooks) -> None:
        hooks.windows = hooks.windows or WindowRecorder(hooks.model)

    def read(self, of: ForwardPass) -> list[Windows]:
        assert of.hooks.windows is not None
        return of.hooks.windows.listed()
