"""What each need gets of what one shared pass recorded."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from attncompare.capture.features import Tap
from attncompare.capture.listening import Recorders, gate_index
from attncompare.capture.recorders import Need
from attncompare.capture.superpixels import superpixels
from attncompare.capture.targets import TargetScore
from attncompare.errors import CaptureError, UnsupportedMethodError
from attncompare.inspection.layout import WindowAttention
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import FREE, Signal


def free_signal(adapter: ModelAdapter, need: Need, images: Tensor, scored: TargetScore) -> object:
    """A signal that costs no pass."""
    match need.signal:
        case Signal.IMAGES:
            return images.detach()
        case Signal.TARGET:
            return scored.target
        case Signal.TOKENS:
            return adapter.attention_tokens
        case Signal.MEAN_COLOUR:
            return adapter.mean_colour
        case Signal.SUPERPIXELS:
            return superpixels(images, int(str(need.option("segments"))))
    raise CaptureError(f"{need.signal} needs a pass")


def tapped_features(tap: Tap) -> Tensor:
    """What a tap saw, or CaptureError."""
    if tap.features is None:
        raise CaptureError(f"layer {tap.path!r} did not run in the forward pass")
    return tap.features


def gradient_sources(needs: Iterable[Need], images: Tensor, heard: Recorders) -> dict[Need, list[Tensor]]:
    """The tensors that each gradient need is taken with respect to."""
    sources: dict[Need, list[Tensor]] = {}
    for need in needs:
        if need.signal is Signal.IMAGE_GRADIENTS:
            sources[need] = [images]
        elif need.signal is Signal.FEATURE_GRADIENTS:
            sources[need] = [tapped_features(heard.taps[need])]
        elif need.signal is Signal.ATTENTION_GRADIENTS:
            assert heard.attention is not None
            sources[need] = heard.attention.listed(heard.attention.blocks)
    return sources


def value_of(
    adapter: ModelAdapter,
    need: Need,
    images: Tensor,
    scored: TargetScore,
    heard: Recorders,
    gradients: Mapping[Need, list[Tensor]],
) -> object:
    """What one need gets of what was recorded."""
    structure, attention = adapter.structure, heard.attention
    match need.signal:
        case free if free in FREE:
            return free_signal(adapter, need, images, scored)
        case Signal.CLASS_SCORES | Signal.CLASSIFIER_WEIGHTS if scored.function is not None:
            raise UnsupportedMethodError(
                f"{need.signal} belong to a class; the target is a function of several outputs"
            )
        case Signal.SCORES | Signal.CLASS_SCORES:
            assert heard.logits is not None
            return scored.outputs(heard.logits)
        case Signal.FEATURES:
            return tapped_features(heard.taps[need]).detach()
        case Signal.POOLED_FEATURES:
            assert structure.classifier is not None
            pooled = tapped_features(heard.taps[need]).detach()
            return pooled.relu() if structure.classifier.rectified else pooled
        case Signal.FEATURE_GRADIENTS | Signal.IMAGE_GRADIENTS:
            return gradients[need][0]
        case Signal.ATTENTION_GRADIENTS:
            assert attention is not None
            return attention.gradients(gradients[need])
        case Signal.ATTENTION:
            assert attention is not None
            return attention.attention()
        case Signal.FUSED_ATTENTION:
            assert attention is not None
            return attention.listed(attention.fused[str(need.option("fusion", "mean"))])
        case Signal.CLASS_ATTENTION:
            assert attention is not None
            return attention.rows_read()
        case Signal.WINDOW_ATTENTION | Signal.ATTENTION_HIERARCHY:
            assert heard.windows is not None
            return heard.windows.listed()
        case Signal.CLASSIFIER_WEIGHTS:
            assert structure.classifier is not None
            linear = adapter.model.get_submodule(structure.classifier.linear)
            weights = linear.weight.detach().flatten(1)  # type: ignore[operator]
            # An embedding's score is linear in it: Y = (W f) . e0 / |e0|, so e0 / |e0| mixes the rows of W. The cosine to
            # a text t is (W f) . t / |t| over |W f|, one number per image, which leaves the map's shape as it is.
            return weights[scored.target] if scored.references is None else scored.references @ weights
        case Signal.CHANNEL_ATTENTION:
            gate = structure.se_layers[gate_index(adapter, need)]
            return heard.outputs.outputs[gate.values].flatten(1)
        case Signal.GATED_FEATURES:
            return heard.outputs.inputs[structure.se_layers[gate_index(adapter, need)].layer]
    raise CaptureError(f"{need.signal} is not a signal of the shared pass")


def repeated(value: object, count: int) -> object:
    """A signal of one image as that of `count` copies; one that has as many rows stays as it is."""
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:]) if len(value) == 1 else value
    if isinstance(value, WindowAttention):
        return replace(value, values=value.values.expand(count, *value.values.shape[1:]))
    return [repeated(one, count) for one in value] if isinstance(value, list) else value
