"""One forward and at most one backward pass that records every signal the methods of a run ask for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncompare.capture.listening import listening
from attncompare.capture.recorders import Need
from attncompare.capture.state import frozen_eval, preserve_state
from attncompare.capture.targets import Target, TargetScore
from attncompare.capture.values import free_signal, gradient_sources, repeated, value_of
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import FREE, GRADIENTS, Signal

LOGITS_TOLERANCE = 1e-5
UNRECORDED = FREE | {Signal.SCORES, Signal.CLASS_SCORES, Signal.IMAGE_GRADIENTS, Signal.CLASSIFIER_WEIGHTS}
ZERO_GRADIENT = 1e-9  # |gradient . signal| below this share of |score| is rounding, not evidence


@dataclass(frozen=True)
class Capture:
    """What one shared pass recorded; detached, so no graph outlives the call.

    scored: the score that was explained, so that methods with passes of their own explain the same one. logits: (B,K), and
    probability: (B,) of the target (or similarity, or value of the function); both None where no pass was made. flat: per
    gradient need (B,) bool, whether it is zero at rounding level. repeat: how many targets of one image were explained.
    """

    scored: TargetScore
    signals: Mapping[Need, object]
    logits: Tensor | None = None
    probability: Tensor | None = None
    flat: Mapping[Need, Tensor] = field(default_factory=dict)
    repeat: int = 1

    @property
    def target(self) -> Tensor:
        """(B,) int64, which of the score's outputs belongs to each image."""
        return self.scored.target


def capture(adapter: ModelAdapter, images: Tensor, needs: Iterable[Need], target: Target = None) -> Capture:
    """The shared pass for other images than a caller's checked ones; UnsupportedMethodError for what the model lacks."""
    needs = list(dict.fromkeys(needs))
    adapter.require(frozenset(need.signal for need in needs), "capture")
    return shared_pass(adapter, images.to(adapter.device), needs, target)


def shared_pass(
    adapter: ModelAdapter, images: Tensor, needs: Sequence[Need], target: Target = None, repeat: int = 1
) -> Capture:
    """Run the model once (and once backward if a gradient is needed) and return what `needs` ask for.

    images: (B,3,H,W) float32 in [0, 1] on the model's device. repeat: how many targets are explained of the one image: one
    forward and as many backward passes; all signals then have that many rows. No pass is made where the classes are given
    and nothing needs one. The first time that a model is recorded in some way, one more forward pass checks that recording
    leaves the logits as they are. Raises CaptureError when what was recorded is not what the model declares.
    """
    if isinstance(target, Tensor) and target.ndim == 1 and not adapter.embedding and {n.signal for n in needs} <= FREE:
        return _without_pass(adapter, images, needs, target, repeat)
    images = images.detach().requires_grad_(any(need.signal is Signal.IMAGE_GRADIENTS for need in needs))
    graph = any(need.signal in GRADIENTS for need in needs)
    with frozen_eval(adapter.model, graph=graph), listening(adapter, needs) as heard:
        logits = adapter.forward(images)
        if not bool(torch.isfinite(logits).all()):
            raise CaptureError(f"{adapter.name} returned non-finite logits; its weights or the images are not usable")
        outputs = logits.expand(repeat, -1) if repeat > 1 else logits
        scored = TargetScore.of(adapter, outputs, target)
        score, heard.logits = scored.score(outputs), outputs.detach()
        probability = scored.probability(heard.logits, torch.arange(len(outputs), device=outputs.device)).float()
        sources = gradient_sources(needs, images, heard)
        gradients = _backward(adapter, score, sources, repeat) if sources else {}
        flat = {need: _is_flat(need, group, gradients[need], score.detach()) for need, group in sources.items()}
        found = {need: value_of(adapter, need, images, scored, heard, gradients) for need in needs}
    found = {need: repeated(value, repeat) for need, value in found.items()} if repeat > 1 else found
    recording = str(sorted(str(need) for need in needs if need.signal not in UNRECORDED))
    if recording not in adapter.checked_recordings:
        _verify_logits(adapter, images, logits.detach())
        adapter.checked_recordings.add(recording)
    return Capture(scored, found, heard.logits, probability, flat, repeat)


def _without_pass(adapter: ModelAdapter, images: Tensor, needs: Sequence[Need], target: Tensor, repeat: int) -> Capture:
    """What is known of the images and the classes alone."""
    scored = TargetScore.of_indices(adapter, target, len(images) * repeat)
    images = images.expand(repeat, -1, -1, -1) if repeat > 1 else images
    with preserve_state(adapter.model):
        return Capture(scored, {need: free_signal(adapter, need, images, scored) for need in needs}, repeat=repeat)


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


def _verify_logits(adapter: ModelAdapter, images: Tensor, recorded: Tensor) -> None:
    """Compare with a pass that records nothing.

    Under autocast another order of the same sums is rounded otherwise. Each of both passes may then lie as far from float32
    as the plain one does.
    """
    device, rounding = images.device.type, 0.0
    with torch.no_grad(), preserve_state(adapter.model):
        plain = adapter.forward(images.detach())
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                rounding = float((plain - adapter.forward(images.detach())).abs().max())
    error = float((plain - recorded).abs().max())
    if not error <= max(LOGITS_TOLERANCE * max(1.0, float(plain.abs().max())), 2 * rounding):
        raise CaptureError(f"recording changes the logits of {adapter.name} by {error:.2g}; its maps would be wrong")


def _backward(
    adapter: ModelAdapter, score: Tensor, wanted: Mapping[Need, list[Tensor]], repeat: int
) -> dict[Need, list[Tensor]]:
    """The gradients of all sources, from one backward pass, or one for each target of the one image."""
    if not score.requires_grad:
        raise CaptureError(f"no gradient of the score reaches what was recorded in {adapter.name}")
    sources = [tensor for group in wanted.values() for tensor in group]
    each = list(score) if repeat > 1 else [score.sum()]
    passes = [
        torch.autograd.grad(one, sources, allow_unused=True, retain_graph=position < len(each) - 1)
        for position, one in enumerate(each)
    ]
    found = [
        torch.cat([torch.zeros_like(source) if g is None else g.detach() for g in per_target])
        for source, per_target in zip(sources, zip(*passes, strict=True), strict=True)
    ]
    filled = iter(found)
    return {need: [next(filled) for _ in group] for need, group in wanted.items()}
