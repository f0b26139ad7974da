"""The target score without one channel of the features, for every channel: only the head of the model runs."""

import torch
from torch import Tensor

from attncompare.capture.capture import Capture
from attncompare.capture.features import find_layout, join_features, split_features
from attncompare.capture.listening import resolve_layer
from attncompare.capture.recorders import Need
from attncompare.capture.replay import Replay
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import Signal

CHUNK = 32  # altered copies in one pass through the head
LINEAR_HEAD = (Need(Signal.POOLED_FEATURES), Need(Signal.CLASSIFIER_WEIGHTS), Need(Signal.SCORES))


def has_linear_head(adapter: ModelAdapter, need: Need) -> bool:
    """Whether the layer's channels reach the score by nothing but their mean and one linear layer."""
    layer = need.option("layer") or adapter.structure.feature_layer
    classifier = adapter.structure.classifier
    return (
        classifier is not None and classifier.feature_module == layer and Signal.CLASSIFIER_WEIGHTS in adapter.supplies
    )


def ablated_scores(
    adapter: ModelAdapter, images: Tensor, reference: Capture, need: Need
) -> tuple[Tensor, float, float]:
    """(B,C) target scores with one channel of the features set to 0 everywhere, and forward and backward passes made.

    Behind global average pooling and a linear layer the score less w_c mean(f_c) is exact and needs no pass. Elsewhere
    the part of the model behind the layer runs once per channel.
    """
    linear = not reference.scored.prompts and reference.scored.function is None
    if linear and has_linear_head(adapter, need):
        pooled, weights, scores = (reference.signals[one] for one in LINEAR_HEAD)
        assert isinstance(pooled, Tensor) and isinstance(weights, Tensor) and isinstance(scores, Tensor)
        score = scores.gather(1, reference.target[:, None])
        return score - weights * pooled.mean(dim=(2, 3)), 0.0, 0.0
    path = resolve_layer(adapter, str(need.option("layer") or adapter.structure.feature_layer))
    with torch.no_grad():
        replay = Replay(adapter, path)
        replay.verify(replay.record(images))
        return torch.stack([_without_each_channel(replay, reference, index) for index in range(len(images))]), 1.0, 0.0


def _without_each_channel(replay: Replay, reference: Capture, index: int) -> Tensor:
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
        found.append(reference.scored.outputs(raw)[:, reference.target[index]])
    return torch.cat(found)
