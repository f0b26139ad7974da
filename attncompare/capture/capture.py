"""One forward and at most one backward pass that records every signal the methods of a run ask for."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.listening import Recorders, layer_of, listening, tapped_features
from attncompare.capture.recorders import Need
from attncompare.capture.state import LOCK, preserve_state
from attncompare.capture.targets import Target, TargetScore
from attncompare.capture.values import repeated, value_of
from attncompare.errors import CaptureError
from attncompare.signals import FREE, GRADIENTS, Signal

LOGITS_TOLERANCE = 1e-5
UNRECORDED = FREE | {Signal.SCORES, Signal.CLASS_SCORES, Signal.IMAGE_GRADIENTS, Signal.CLASSIFIER_WEIGHTS}
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

    @property
    def probability(self) -> Tensor | None:
        """(B,) probability (similarity, value of the function) of the target; None where no pass was made."""
        if not self.logits.numel():
            return None
        return self.scored.probability(self.logits, torch.arange(len(self.logits), device=self.logits.device)).float()


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


def capture(
    adapter: ModelAdapter, images: Tensor, needs: Iterable[Need], target: Target = None, repeat: int = 1
) -> Capture:
    """Run the model once (and once backward if a gradient is needed) and return what `needs` ask for.

    images: (B,3,H,W) float32 in [0, 1]. repeat: how many targets are explained of the one image: one forward and as many
    backward passes; all signals then have that many rows. Raises CaptureError when what was recorded is not what the model
    declares.
    """
    needs = list(dict.fromkeys(needs))
    adapter.require(frozenset(need.signal for need in needs), "capture")
    images = images.detach().to(adapter.device)
    if any(need.signal is Signal.IMAGE_GRADIENTS for need in needs):
        images = images.requires_grad_(True)
    with ExitStack() as stack:
        stack.enter_context(LOCK)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(any(need.signal in GRADIENTS for need in needs)))
        stack.enter_context(preserve_state(adapter.model))
        heard = stack.enter_context(listening(adapter, needs))
        logits = adapter.forward(images)
        if not bool(torch.isfinite(logits).all()):
            raise CaptureError(f"{adapter.name} returned non-finite logits; its weights or the images are not usable")
        outputs = logits.expand(repeat, -1) if repeat > 1 else logits
        scored = TargetScore.of(adapter, outputs, target)
        score = scored.score(outputs)
        wanted = _gradient_sources(adapter, needs, images, heard)
        gradients = _backward(adapter, score, wanted, repeat) if wanted else {}
        flat = {need: _is_flat(need, group, gradients[need], score.detach()) for need, group in wanted.items()}
        heard = replace(heard, logits=outputs.detach())
        found = {n: value_of(adapter, n, images, scored, heard, gradients) for n in needs}
        found = {n: repeated(value, repeat) for n, value in found.items()} if repeat > 1 else found
    recording = str(sorted(str(need) for need in needs if need.signal not in UNRECORDED))
    if recording not in adapter.verified:  # once per model and kind of recording: one more forward pass
        _verify_logits(adapter, images, logits.detach())
        adapter.verified.add(recording)
    return Capture(outputs.detach(), scored, found, flat)


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


def _gradient_sources(
    adapter: ModelAdapter, needs: list[Need], images: Tensor, heard: Recorders
) -> dict[Need, list[Tensor]]:
    """The tensors that each gradient need is taken with respect to."""
    sources: dict[Need, list[Tensor]] = {}
    for need in needs:
        if need.signal is Signal.IMAGE_GRADIENTS:
            sources[need] = [images]
        elif need.signal is Signal.FEATURE_GRADIENTS:
            sources[need] = [tapped_features(heard.taps[layer_of(adapter, need)])]
        elif need.signal is Signal.ATTENTION_GRADIENTS:
            sources[need] = heard.attention.listed(heard.attention.blocks)
    return sources
