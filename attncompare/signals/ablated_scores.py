"""The target score without one channel of the features, for every channel: only the head of the model runs."""

import torch
from torch import Tensor

from attncompare.capture.extra_pass import ExtraPass
from attncompare.capture.forward_pass import Recorded
from attncompare.capture.hooks import layer_of
from attncompare.capture.replay import Replay
from attncompare.errors import CaptureError
from attncompare.inspection.layout import find_layout, join_features, split_features
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import LAYER, Signal, signal
from attncompare.signals.classifier_weights import ClassifierWeights
from attncompare.signals.pooled_features import PooledFeatures
from attncompare.signals.scores import Scores

CHUNK = 32  # altered copies in one pass through the head


@signal(cost="extra", options=(LAYER,))
class AblatedScores(Signal):
    """(B,C) target score with one channel of the features set to 0 everywhere.

    Behind global average pooling and a linear layer the score less w_c mean(f_c) is exact and needs no pass. Elsewhere the
    part of the model behind the layer runs once per channel.
    """

    layer: str | None = None

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("feature_layer")

    def takes(self, model: ModelAdapter, target: object) -> tuple[Signal, ...]:
        linear = not callable(target) and self.has_linear_head(model)
        return (PooledFeatures(), ClassifierWeights(), Scores()) if linear else ()

    def has_linear_head(self, model: ModelAdapter) -> bool:
        """Whether the layer's channels reach the score by nothing but their mean and one linear layer."""
        classifier = model.structure.classifier
        of_layer = classifier is not None and classifier.feature_module == (self.layer or model.structure.feature_layer)
        return of_layer and not ClassifierWeights().missing(model)

    def run(self, extra: ExtraPass) -> Tensor:
        model, recorded = extra.model, extra.recorded
        linear = not recorded.score.prompts and recorded.score.function is None
        if linear and self.has_linear_head(model):
            taken = [recorded.signals[one] for one in self.takes(model, None)]
            pooled, weights, scores = (one for one in taken if isinstance(one, Tensor))
            return scores.gather(1, recorded.target[:, None]) - weights * pooled.mean(dim=(2, 3))
        with torch.no_grad():
            replay = Replay(model, layer_of(model, self.layer))
            replay.verify(replay.record(extra.images))
            extra.forward.add(1.0, 0.0)
            return torch.stack([_without_each_channel(replay, recorded, i) for i in range(len(extra.images))])


def _without_each_channel(replay: Replay, recorded: Recorded, index: int) -> Tensor:
    """(C,) scores of one image."""
    adapter, native = replay.adapter, replay.tensor[index : index + 1]
    layout = find_layout(native.shape, adapter.size, adapter.token_layouts)
    if layout is None:
        raise CaptureError(f"layer {replay.path!r} returns {tuple(native.shape)}, which does not lie on the image")
    features = split_features(native, layout)
    found = []
    for channels in torch.split(torch.arange(features.shape[1], device=native.device), CHUNK):
        altered = features.repeat(len(channels), 1, 1, 1)
        altered[torch.arange(len(channels), device=native.device), channels] = 0
        which = torch.full((len(channels),), index, device=native.device)
        raw = replay.run(join_features(altered, native.expand(len(channels), *native.shape[1:]), layout), which)
        found.append(recorded.score.outputs(raw)[:, recorded.target[index]])
    return torch.cat(found)
