"""One forward and at most one backward pass that records every signal the methods of a call ask for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from attncompare.capture.hooks import Hooks
from attncompare.capture.target import Target, TargetScore, prompts_of, text_directions
from attncompare.errors import CaptureError
from attncompare.inspection.layout import WindowAttention
from attncompare.models.adapter import ModelAdapter
from attncompare.models.same_outputs import check_same_outputs
from attncompare.state import LOCK, frozen_eval, preserve_state

Cost = Literal["free", "shared", "extra"]
"""Of a signal: no pass, the one pass that all methods of a call share, or passes of its own."""
ZERO_GRADIENT = 1e-9  # |gradient . source| below this share of |score| is rounding, not evidence


@dataclass
class ForwardPass:
    """A pass over the clean images, as a signal reads it.

    images: (B,3,H,W). score: what is explained. logits: (B,K), empty where no pass was made. features: (B,C,h,w) by layer.
    gradients: of each signal's sources. hooks: what was recorded.
    """

    model: ModelAdapter
    images: Tensor
    score: TargetScore
    hooks: Hooks
    logits: Tensor
    features: Mapping[str | None, Tensor] = field(default_factory=dict)
    gradients: dict["Wanted", list[Tensor]] = field(default_factory=dict)


class Wanted(Protocol):
    """A signal as a pass knows it: see signals/_base.py."""

    name: ClassVar[str]
    cost: ClassVar[Cost]
    backward: ClassVar[bool]
    inside: ClassVar[bool]
    bounded: ClassVar[bool]

    def attach(self, hooks: Hooks) -> None: ...  # noqa: D102

    def sources(self, of: ForwardPass) -> list[Tensor]: ...  # noqa: D102

    def read(self, of: ForwardPass) -> object: ...  # noqa: D102


@dataclass(frozen=True)
class Recorded:
    """What one shared pass recorded; detached, so no graph outlives the call.

    score: what was explained, so that methods with passes of their own explain the same. logits: (B,K), and probability:
    (B,) of the target (or similarity, or value of the function); both None where no pass was made. vanishing: per signal
    that went backward (B,) bool, whether its gradient is zero at rounding level. repeat: how many targets of one image
    were explained.
    """

    score: TargetScore
    signals: Mapping[Wanted, object]
    logits: Tensor | None = None
    probability: Tensor | None = None
    vanishing: Mapping[Wanted, Tensor] = field(default_factory=dict)
    repeat: int = 1

    @property
    def target(self) -> Tensor:
        """(B,) int64, which of the score's outputs belongs to each image."""
        return self.score.target


def record(model: ModelAdapter, images: Tensor, wanted: Iterable[Wanted], target: Target = None) -> Recorded:
    """The shared pass for other images than a caller's checked ones; UnsupportedMethodError for what the model lacks."""
    wanted = list(dict.fromkeys(wanted))
    model.require([type(one) for one in wanted], "recording")
    with LOCK, torch.inference_mode(False):
        return shared_pass(model, images.to(model.device), wanted, target)


def shared_pass(
    model: ModelAdapter, images: Tensor, wanted: Sequence[Wanted], target: Target = None, repeat: int = 1
) -> Recorded:
    """Run the model once (and once backward if a gradient is needed) and read every signal that is wanted.

    images: (B,3,H,W) float32 in [0, 1] on the model's device. repeat: how many targets are explained of the one image: one
    forward and as many backward passes; all signals then have that many rows. No pass is made where the classes are given
    and nothing needs one. The first time that a model is recorded in some way, one more forward pass checks that recording
    leaves the logits as they are. Raises CaptureError when what was recorded is not what the model declares.
    """
    wanted = list(dict.fromkeys(wanted))
    known = isinstance(target, Tensor) and target.ndim == 1 and not model.embedding
    if known and all(one.cost == "free" for one in wanted):
        return _without_pass(model, images, wanted, target, repeat)
    graph, hooks = any(one.backward for one in wanted), Hooks(model)
    for one in wanted:
        one.attach(hooks)
    images = images.detach().requires_grad_(graph and hooks.down_to_images)
    prompts = () if target is None else prompts_of(target, len(images) * repeat)
    # Now, while nothing listens: a text encoder attends, too.
    directions = text_directions(model, prompts) if prompts else None
    with frozen_eval(model.module, graph=graph), hooks.installed():
        logits = model.forward(images)
        if not bool(torch.isfinite(logits).all()):
            raise CaptureError(f"{model.name} returned non-finite logits; its weights or the images are not usable")
        outputs = logits.expand(repeat, -1) if repeat > 1 else logits
        score = TargetScore.of(model, outputs, target, directions)
        values = score.score(outputs)
        probability = score.probability(outputs.detach(), torch.arange(len(outputs), device=outputs.device)).float()
        ran = ForwardPass(model, images, score, hooks, outputs.detach(), _features(hooks))
        vanishing = _backward(ran, values, [one for one in wanted if one.backward], repeat) if graph else {}
        found = {one: one.read(ran) for one in wanted}
    found = {one: repeated(value, repeat) for one, value in found.items()} if repeat > 1 else found
    recording = str(sorted(str(one) for one in wanted if one.inside))
    if recording not in model.checked_recordings:
        _verify_logits(model, images, logits.detach())
        model.checked_recordings.add(recording)
    return Recorded(score, found, ran.logits, probability, vanishing, repeat)


def _features(hooks: Hooks) -> dict[str | None, Tensor]:
    """(B,C,h,w) of each hooked layer, or CaptureError."""
    for hook in hooks.features.values():
        if hook.features is None:
            raise CaptureError(f"layer {hook.path!r} did not run in the forward pass")
    return {layer: hook.features for layer, hook in hooks.features.items() if hook.features is not None}


def _without_pass(
    model: ModelAdapter, images: Tensor, wanted: Sequence[Wanted], target: object, repeat: int
) -> Recorded:
    """What is known of the images and the classes alone."""
    score = TargetScore.of_indices(model, target, len(images) * repeat, model.structure.outputs)
    images = images.expand(repeat, -1, -1, -1) if repeat > 1 else images
    with preserve_state(model.module):
        known = ForwardPass(model, images, score, Hooks(model), images.new_empty(0))
        return Recorded(score, {one: one.read(known) for one in wanted}, repeat=repeat)


def _backward(ran: ForwardPass, score: Tensor, wanted: Sequence[Wanted], repeat: int) -> dict[Wanted, Tensor]:
    """Fill in the gradients of all sources, from one backward pass or one for each target; which of them vanish."""
    if not score.requires_grad:
        raise CaptureError(f"no gradient of the score reaches what was recorded in {ran.model.name}")
    sources = {one: one.sources(ran) for one in wanted}
    every = [tensor for group in sources.values() for tensor in group]
    each = list(score) if repeat > 1 else [score.sum()]
    passes = [
        torch.autograd.grad(one, every, allow_unused=True, retain_graph=position < len(each) - 1)
        for position, one in enumerate(each)
    ]
    filled = iter(
        torch.cat([torch.zeros_like(source) if g is None else g.detach() for g in per_target])
        for source, per_target in zip(every, zip(*passes, strict=True), strict=True)
    )
    ran.gradients = {one: [next(filled) for _ in group] for one, group in sources.items()}
    return {one: _vanishes(one, group, ran.gradients[one], score.detach()) for one, group in sources.items()}


def _vanishes(one: Wanted, sources: Iterable[Tensor], gradients: Iterable[Tensor], score: Tensor) -> Tensor:
    """(B,) whether a gradient is zero at rounding level: nothing it is taken for could move the score.

    The sum of the absolute gradient, times the largest absolute value of what it is taken for, bounds the effect.
    """
    effect = torch.zeros_like(score)
    for source, gradient in zip(sources, gradients, strict=True):
        largest = 1.0 if one.bounded else source.detach().abs().flatten(1).amax(1)
        effect = effect + gradient.abs().flatten(1).sum(1) * largest
    return effect <= ZERO_GRADIENT * score.abs()


def _verify_logits(model: ModelAdapter, images: Tensor, recorded: Tensor) -> None:
    """Compare with a pass that records nothing.

    Under autocast another order of the same sums is rounded otherwise. Each of both passes may then lie as far from float32
    as the plain one does.
    """
    device, rounding = images.device.type, 0.0
    with torch.no_grad(), preserve_state(model.module):
        plain = model.forward(images.detach())
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                rounding = float((plain - model.forward(images.detach())).abs().max())
    what = f"recording changes the logits of {model.name}"
    check_same_outputs(plain, recorded, what, "; its maps would be wrong", rounding=2 * rounding)


def repeated(value: object, count: int) -> object:
    """A signal of one image as that of `count` copies; one that has as many rows stays as it is."""
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:]) if len(value) == 1 else value
    if isinstance(value, WindowAttention):
        return replace(value, values=value.values.expand(count, *value.values.shape[1:]))
    return [repeated(one, count) for one in value] if isinstance(value, list) else value
