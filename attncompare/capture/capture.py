"""One forward and at most one backward pass that records every signal the methods of a run ask for."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.attention import AttentionCalls, current_block, slow_attention_path
from attncompare.capture.features import Tap, tapped
from attncompare.capture.recorders import AttentionRecorder, Need, OutputRecorder, WindowRecorder
from attncompare.capture.targets import Target, TargetScore
from attncompare.errors import CaptureError, UnknownNameError
from attncompare.signals import GRADIENTS, Signal

LOGITS_TOLERANCE = 1e-5
UNRECORDED = frozenset({Signal.IMAGES, Signal.TARGET, Signal.TOKENS, Signal.IMAGE_GRADIENTS, Signal.CLASSIFIER_WEIGHTS})
ATTENTION_SIGNALS = frozenset(
    {Signal.ATTENTION, Signal.ATTENTION_GRADIENTS, Signal.FUSED_ATTENTION, Signal.CLASS_ATTENTION}
)
WINDOW_SIGNALS = frozenset({Signal.WINDOW_ATTENTION, Signal.ATTENTION_HIERARCHY})
ZERO_GRADIENT = 1e-9  # |gradient . signal| below this share of |score| is rounding, not evidence


@dataclass(frozen=True)
class Capture:
    """What one shared pass recorded; detached, so no graph outlives the call.

    logits: (B,K). scored: the score that was explained, so that methods with passes of their own explain the same one.
    flat: per gradient need (B,) bool, whether it is zero at rounding level.
    """

    logits: Tensor
    scored: TargetScore
    signals: Mapping[Need, object]
    flat: Mapping[Need, Tensor]

    @property
    def target(self) -> Tensor:
        """(B,) int64, which of the score's outputs belongs to each image."""
        return self.scored.target


@dataclass(frozen=True)
class Recorders:
    """Everything that listens during one shared pass."""

    taps: Mapping[str, Tap]
    outputs: OutputRecorder
    attention: AttentionRecorder
    windows: WindowRecorder


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; training flags, requires_grad and the RNG state restored after."""
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    rng = torch.get_rng_state()
    try:
        for module in training:
            module.training = False
        for parameter in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
        torch.set_rng_state(rng)


def _layer(adapter: ModelAdapter, need: Need) -> str:
    path = need.option("layer") or adapter.anatomy.feature_layer
    return resolve_layer(adapter, str(path))


def resolve_layer(adapter: ModelAdapter, path: str) -> str:
    """Check that a module path exists in the model."""
    names = {name for name, _ in adapter.model.named_modules() if name}
    if path not in names:
        near = get_close_matches(path, names, n=3) or sorted(adapter.anatomy.stages)
        raise UnknownNameError(f"{adapter.name} has no layer {path!r}; did you mean {', '.join(near)}?")
    return path


def _gate_index(adapter: ModelAdapter, need: Need) -> int:
    number, gates = int(str(need.option("gate", -1))), adapter.anatomy.gates
    if not -len(gates) <= number < len(gates):
        raise UnknownNameError(f"{adapter.name} has {len(gates)} channel-attention layers; gate {number} is not one")
    return number % len(gates)


def _is_flat(need: Need, sources: Iterable[Tensor], gradients: Iterable[Tensor], score: Tensor) -> Tensor:
    """(B,) whether a gradient is zero at rounding level: nothing it is taken for could move the score.

    Images and attention lie in [0, 1], so the sum of the absolute gradient bounds the effect; features are scaled by
    their own largest value.
    """
    effect = torch.zeros_like(score)
    for source, gradient in zip(sources, gradients, strict=True):
        reach = gradient.abs().flatten(1).sum(1)
        scale = source.detach().abs().flatten(1).amax(1) if need.signal is Signal.FEATURE_GRADIENTS else 1.0
        effect = effect + reach * scale
    return effect <= ZERO_GRADIENT * score.abs()


def capture(adapter: ModelAdapter, images: Tensor, needs: Iterable[Need], target: Target = None) -> Capture:
    """Run the model once (and once backward if a gradient is needed) and return what `needs` ask for.

    images: (B,3,H,W) float32 in [0, 1]. Raises CaptureError when what was recorded is not what the model declares.
    """
    needs = list(dict.fromkeys(needs))
    adapter.require(frozenset(need.signal for need in needs), "capture")
    layers = {_layer(adapter, n) for n in needs if n.signal in (Signal.FEATURES, Signal.FEATURE_GRADIENTS)}
    taps = {path: Tap(path, adapter.size, adapter.sequences) for path in layers}
    pooled = [n for n in needs if n.signal is Signal.POOLED_FEATURES]
    if pooled and adapter.anatomy.classifier:
        path = adapter.anatomy.classifier.features
        taps.setdefault(path, Tap(path, adapter.size, adapter.sequences))
    gates = {_gate_index(adapter, n) for n in needs if n.signal in (Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES)}
    attends, windowed = (any(n.signal in kind for n in needs) for kind in (ATTENTION_SIGNALS, WINDOW_SIGNALS))
    blocks = adapter.anatomy.attention_blocks if attends else ()
    blocks = tuple(block.path for block in adapter.anatomy.windows) if windowed else blocks
    wants_gradients = any(need.signal in GRADIENTS for need in needs)
    images = images.detach().to(adapter.device)
    if any(need.signal is Signal.IMAGE_GRADIENTS for need in needs):
        images = images.requires_grad_(True)
    running: list[int] = []
    heard = Recorders(
        taps, OutputRecorder(), AttentionRecorder(adapter, needs, running), WindowRecorder(adapter, running)
    )

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(wants_gradients))
        stack.enter_context(left_as_found(adapter.model))
        stack.enter_context(slow_attention_path())
        for tap in taps.values():
            stack.enter_context(tapped(adapter.model, tap))
        for index in gates:
            gate = adapter.anatomy.gates[index]
            layer, values = (adapter.model.get_submodule(path) for path in (gate.layer, gate.values))
            stack.callback(layer.register_forward_pre_hook(heard.outputs.input_hook(gate.layer)).remove)
            stack.callback(values.register_forward_hook(heard.outputs.output_hook(gate.values)).remove)
        stack.enter_context(current_block(adapter.model, blocks, running))
        if attends or windowed:  # no model supplies both
            stack.enter_context(AttentionCalls(heard.windows if windowed else heard.attention))
        logits = adapter.forward(images)
        if not bool(torch.isfinite(logits).all()):
            raise CaptureError(f"{adapter.name} returned non-finite logits; its weights or the images are not usable")
        scored = TargetScore.of(adapter, logits, target)
        score = scored.score(logits)
        wanted = _gradient_sources(adapter, needs, images, heard)
        gradients = _backward(adapter, score, wanted) if wanted else {}
        flat = {need: _is_flat(need, group, gradients[need], score.detach()) for need, group in wanted.items()}
        found = {n: _value(adapter, n, images, scored, heard, gradients) for n in needs}
    recording = str(sorted(str(need) for need in needs if need.signal not in UNRECORDED))
    if recording not in adapter.verified:  # once per model and kind of recording: one more forward pass
        _verify_logits(adapter, images, logits.detach())
        adapter.verified.add(recording)
    return Capture(logits.detach(), scored, found, flat)


def _verify_logits(adapter: ModelAdapter, images: Tensor, recorded: Tensor) -> None:
    """Compare with a pass that records nothing."""
    with torch.no_grad(), left_as_found(adapter.model):
        plain = adapter.forward(images.detach())
    error = float((plain - recorded).abs().max())
    if not error <= LOGITS_TOLERANCE * max(1.0, float(plain.abs().max())):
        raise CaptureError(f"recording changes the logits of {adapter.name} by {error:.2g}; its maps would be wrong")


def _backward(adapter: ModelAdapter, score: Tensor, wanted: Mapping[Need, list[Tensor]]) -> dict[Need, list[Tensor]]:
    """The gradients of all sources, from one backward pass."""
    if not score.requires_grad:
        raise CaptureError(f"no gradient of the score reaches what was recorded in {adapter.name}")
    sources = [tensor for group in wanted.values() for tensor in group]
    found = torch.autograd.grad(score.sum(), sources, allow_unused=True)
    filled = iter([torch.zeros_like(s) if g is None else g.detach() for s, g in zip(sources, found, strict=True)])
    return {need: [next(filled) for _ in group] for need, group in wanted.items()}


def _gradient_sources(
    adapter: ModelAdapter, needs: list[Need], images: Tensor, heard: Recorders
) -> dict[Need, list[Tensor]]:
    """The tensors that each gradient need is taken with respect to."""
    sources: dict[Need, list[Tensor]] = {}
    for need in needs:
        if need.signal is Signal.IMAGE_GRADIENTS:
            sources[need] = [images]
        elif need.signal is Signal.FEATURE_GRADIENTS:
            sources[need] = [_tapped(heard.taps[_layer(adapter, need)])]
        elif need.signal is Signal.ATTENTION_GRADIENTS:
            sources[need] = heard.attention.listed(heard.attention.blocks)
    return sources


def _tapped(tap: Tap) -> Tensor:
    if tap.features is None:
        raise CaptureError(f"layer {tap.path!r} did not run in the forward pass")
    return tap.features


def _value(
    adapter: ModelAdapter,
    need: Need,
    images: Tensor,
    scored: TargetScore,
    heard: Recorders,
    gradients: Mapping[Need, list[Tensor]],
) -> object:
    """What one need gets of what was recorded."""
    anatomy = adapter.anatomy
    match need.signal:
        case Signal.IMAGES:
            return images.detach()
        case Signal.TARGET:
            return scored.target
        case Signal.TOKENS:
            return adapter.attention_tokens
        case Signal.FEATURES:
            return _tapped(heard.taps[_layer(adapter, need)]).detach()
        case Signal.POOLED_FEATURES:
            assert anatomy.classifier is not None
            pooled = _tapped(heard.taps[anatomy.classifier.features]).detach()
            return pooled.relu() if anatomy.classifier.rectified else pooled
        case Signal.FEATURE_GRADIENTS | Signal.IMAGE_GRADIENTS:
            return gradients[need][0]
        case Signal.ATTENTION_GRADIENTS:
            return heard.attention.gradients(gradients[need])
        case Signal.ATTENTION:
            return heard.attention.attention()
        case Signal.FUSED_ATTENTION:
            return heard.attention.listed(heard.attention.fused[str(need.option("fusion", "mean"))])
        case Signal.CLASS_ATTENTION:
            return heard.attention.rows_read()
        case Signal.WINDOW_ATTENTION | Signal.ATTENTION_HIERARCHY:
            return heard.windows.listed()
        case Signal.CLASSIFIER_WEIGHTS:
            assert anatomy.classifier is not None
            linear = adapter.model.get_submodule(anatomy.classifier.linear)
            weights = linear.weight.detach().flatten(1)  # type: ignore[operator]
            # An embedding's score is linear in it: Y = (W f) . e0 / |e0|, so e0 / |e0| mixes the rows of W. The cosine to
            # a text t is (W f) . t / |t| over |W f|, one number per image, which leaves the map's shape as it is.
            return weights[scored.target] if scored.references is None else scored.references @ weights
        case Signal.CHANNEL_ATTENTION:
            gate = anatomy.gates[_gate_index(adapter, need)]
            return heard.outputs.outputs[gate.values].flatten(1)
        case Signal.GATED_FEATURES:
            return heard.outputs.inputs[anatomy.gates[_gate_index(adapter, need)].layer]
    raise CaptureError(f"{need.signal} is not a signal of the shared pass")
