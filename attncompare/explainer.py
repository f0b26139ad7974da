"""The Explainer interface, and many methods of one model for the price of one forward and one backward pass."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.capture import Capture, capture, left_as_found, resolve_layer
from attncompare.capture.features import Tap, tapped
from attncompare.capture.recorders import Need
from attncompare.capture.targets import CountedForward, Target, TargetScore, prompts_of
from attncompare.errors import CaptureError, SpecError
from attncompare.maps import AttributionMap
from attncompare.methods._base import FREE, Method, methods
from attncompare.signals import SIGNAL_OPTIONS, Signal

Request = str | tuple[str, Mapping[str, object]]
"""A method's name, or (name, options)."""


class Explainer(Protocol):
    """All that the benchmark knows of a method: wrap any library in this and it can be scored."""

    name: str

    def explain(self, images: Tensor, target: Target = None) -> AttributionMap:
        """(B,3,H,W) in [0, 1] -> maps (B,h,w)."""
        ...


@dataclass(frozen=True)
class Job:
    """A method with its options resolved, and what it needs of a model."""

    method: Method
    options: Mapping[str, object]

    def need(self, signal: Signal) -> Need:
        """The need for one of its signals, with the options that belong to it."""
        wanted = {o.name: self.options[o.name] for o in SIGNAL_OPTIONS.get(signal, ())}
        return Need(signal, tuple(sorted(wanted.items())))

    def own_options(self) -> dict[str, object]:
        """The options that its function takes."""
        inherited = {o.name for need in self.method.needs for o in SIGNAL_OPTIONS.get(need, ())}
        return {name: value for name, value in self.options.items() if name not in inherited}


def make_job(model: ModelAdapter, request: Request) -> Job:
    """Look up a method, check its options and that the model supplies what it needs."""
    name, given = (request, {}) if isinstance(request, str) else request
    found = methods.get(name)
    job = Job(found, found.resolve(given))
    model.require(frozenset(found.needs), name)
    if job.options.get("layer") is not None:
        resolve_layer(model, str(job.options["layer"]))
    return job


@dataclass(frozen=True)
class MethodExplainer:
    """One method on one model.

    >>> import attncompare as ac
    >>> model = ac.load_model("demo/vit")
    >>> explainer = ac.make_explainer(model, "attention_rollout", fusion="max")
    >>> explainer.explain(torch.rand(2, 3, 64, 64)).values.shape
    torch.Size([2, 8, 8])
    """

    model: ModelAdapter
    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    def explain(self, images: Tensor, target: Target = None) -> AttributionMap:
        """Maps of the images for a target; None explains the model's own top class."""
        return explain_together(self.model, [(self.name, self.options)], images, target)[self.name]


def make_explainer(model: ModelAdapter, name: str, **options: object) -> MethodExplainer:
    """Check a method and its options against a model and bind them; errors come now, not at the first image."""
    return MethodExplainer(model, name, make_job(model, (name, options)).options)


def check_images(model: ModelAdapter, images: Tensor) -> Tensor:
    """The images as float32 on the model's device, or an error that says what is wrong with them."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, *model.size):
        raise SpecError(
            f"images have shape {tuple(images.shape)}; {model.name} needs (B, 3, {model.size[0]}, {model.size[1]})"
        )
    if not images.is_floating_point():
        raise SpecError(f"images are {images.dtype}; float32 in [0, 1] is needed (divide by 255)")
    if not len(images):
        raise SpecError("no images were given")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise SpecError(f"images range from {low:.3g} to {high:.3g}; [0, 1] is needed (do not normalise them yourself)")
    with torch.inference_mode(False):  # a caller's inference tensors cannot carry gradients; a copy can
        images = images.clone() if images.is_inference() else images.detach()
        return images.to(model.device, torch.float32)


def explain_together(
    model: ModelAdapter, requests: Sequence[Request], images: Tensor, target: Target = None
) -> dict[str, AttributionMap]:
    """Explain images by several methods at once; those that read the shared pass cost one forward and one backward.

    images: (B,3,H,W) float32 in [0, 1] at the model's size. Returns method name -> AttributionMap. The target is fixed
    on the clean images and is the same for all methods. Raises UnsupportedMethodError before anything runs.

    >>> import attncompare as ac
    >>> maps = ac.explain_together(ac.load_model("demo/cnn"), ["layer_cam", "saliency"], torch.rand(1, 3, 64, 64))
    >>> {name: tuple(m.values.shape) for name, m in maps.items()}
    {'layer_cam': (1, 8, 8), 'saliency': (1, 64, 64)}
    """
    jobs = [make_job(model, request) for request in requests]
    if len({job.method.name for job in jobs}) != len(jobs):
        raise SpecError("a method is asked for twice; run them in two calls")
    images = check_images(model, images)
    found: dict[str, AttributionMap] = {}
    shared = [job for job in jobs if not job.method.own_passes]
    reference = _resolve(model, images, target, shared)
    for job in shared:
        arguments = [reference.signals[job.need(signal)] for signal in job.method.needs]
        flats = [reference.flat[n] for n in map(job.need, job.method.needs) if n in reference.flat]
        flat = torch.stack(flats).any(dim=0) if flats else None
        read = bool(set(job.method.needs) - FREE)
        passes = (float(read), float(any("gradients" in signal for signal in job.method.needs)))
        found[job.method.name] = _as_map(
            model, job, job.method.compute(*arguments, **job.own_options()), reference, passes, flat
        )
    for job in (job for job in jobs if job.method.own_passes):
        found[job.method.name] = _run_alone(model, job, images, reference)
    prompts = prompts_of(target, len(images))
    return {job.method.name: replace(found[job.method.name], prompts=prompts) for job in jobs}


def _resolve(model: ModelAdapter, images: Tensor, target: Target, shared: Iterable[Job]) -> Capture:
    """The shared pass; skipped when nothing needs it and the targets are given."""
    needs = [job.need(signal) for job in shared for signal in job.method.needs]
    if isinstance(target, Tensor) and not model.embedding and all(need.signal in FREE for need in needs):
        values: dict[Signal, object] = {Signal.IMAGES: images, Signal.TOKENS: model.attention_tokens}
        checked = TargetScore.of(model, images.new_empty(len(images), model.anatomy.outputs), target)
        values[Signal.TARGET] = checked.target
        return Capture(images.new_empty(0), checked, {n: values[n.signal] for n in needs}, {})
    return capture(model, images, needs, target)


def _run_alone(model: ModelAdapter, job: Job, images: Tensor, reference: Capture) -> AttributionMap:
    """A method that runs the model itself, on the frozen model with its passes counted."""
    forward = CountedForward(model, reference.scored)
    signals: dict[Signal, object] = {
        Signal.IMAGES: images,
        Signal.TARGET: reference.target,
        Signal.FORWARD: forward,
        Signal.TARGET_SCORE: forward.target_score,
        Signal.TOKENS: model.attention_tokens,
    }
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(left_as_found(model.model))
        if Signal.FEATURE_LAYER in job.method.needs:
            path = str(job.options.get("layer") or model.anatomy.feature_layer)
            tap = Tap(path, model.size, model.sequences, watch=forward.watch)
            stack.enter_context(tapped(model.model, tap))
            signals[Signal.FEATURE_LAYER] = tap.identity
        try:
            result = job.method.compute(*(signals[signal] for signal in job.method.needs), **job.own_options())
        except RuntimeError as error:
            if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
                raise CaptureError(f"{job.method.name}: no gradient of the score reaches it in {model.name}") from error
            raise
    passes = (forward.seen_forward / len(images), forward.seen_backward / len(images))
    return _as_map(model, job, result, reference, passes, forward.flat(len(images)))


def _as_map(
    model: ModelAdapter,
    job: Job,
    result: Tensor | tuple[Tensor, dict[str, Tensor]],
    reference: Capture,
    passes: tuple[float, float],
    flat: Tensor | None,
) -> AttributionMap:
    """Check what a method returned and say who made it."""
    values, detail = result if isinstance(result, tuple) else (result, {})
    values = values.detach().float()
    name = job.method.name
    if flat is not None and bool(flat.any()):
        raise CaptureError(
            f"{name}: the gradient of the score is zero at rounding level for image {int(flat.nonzero()[0])}; "
            f"the map would be noise ({model.name})"
        )
    if not bool(torch.isfinite(values).all()):
        raise CaptureError(f"{name} gave non-finite values on {model.name}")
    return AttributionMap(
        values,
        reference.target,
        model=model.name,
        method=name,
        options=dict(job.options),
        detail=detail,
        passes_forward=passes[0],
        passes_backward=passes[1],
    )
