"""The Explainer interface, and many methods of one model for the price of one forward and one backward pass."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.altered import altered, prerequisites
from attncompare.capture.arguments import check_images, check_model
from attncompare.capture.capture import Capture, capture
from attncompare.capture.features import Tap, tapped
from attncompare.capture.listening import resolve_layer
from attncompare.capture.recorders import Need
from attncompare.capture.state import LOCK, preserve_state
from attncompare.capture.targets import CountedForward, Target, TargetScore, prompts_of
from attncompare.capture.values import free_signal
from attncompare.errors import CaptureError, SpecError
from attncompare.maps import AttributionMap
from attncompare.methods._base import Method, methods
from attncompare.registry import Request, listed, split_request
from attncompare.signals import ALTERED, FREE, GRADIENTS, OWN_PASSES, SIGNAL_OPTIONS, Signal


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
    check_model(model)
    name, given = split_request(request)
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
    images = check_images(model, images)
    found = _explain(model, [make_job(model, request) for request in listed(requests)], images, target, 1)
    prompts = prompts_of(target, len(images))
    return {name: replace(shown, prompts=prompts) for name, shown in found.items()}


def explain_targets(
    model: ModelAdapter, requests: Sequence[Request], image: Tensor, targets: Sequence[int] | Sequence[str] | Tensor
) -> dict[str, AttributionMap]:
    """Explain several targets of one image: one forward pass, and one backward pass for each target.

    image: (1,3,H,W). targets: T class indices, or T strings as in `explain_together`; "rank:1", "rank:2", ... are the
    model's first choices, found in the same pass. Returns method name -> maps (T,h,w). Methods with passes of their own, but
    for those of the CAM family, make them for each target.

    >>> import attncompare as ac
    >>> maps = ac.explain_targets(ac.load_model("demo/cnn"), ["grad_cam"], torch.rand(1, 3, 64, 64), [0, 3, 5])
    >>> tuple(maps["grad_cam"].values.shape)
    (3, 8, 8)
    """
    image = check_images(model, image)
    if len(image) != 1:
        raise SpecError(f"{len(image)} images were given; explain_targets takes one, (1, 3, H, W)")
    flat = getattr(targets, "ndim", 1) == 1 and hasattr(targets, "__len__") and not isinstance(targets, str)
    if not flat or not len(targets):
        raise SpecError(f"targets {targets!r}: a sequence of class indices or strings is needed")
    found = _explain(model, [make_job(model, request) for request in listed(requests)], image, targets, len(targets))
    prompts = prompts_of(targets, len(targets))
    return {name: replace(shown, prompts=prompts) for name, shown in found.items()}


def _explain(
    model: ModelAdapter, jobs: Sequence[Job], images: Tensor, target: Target, repeat: int
) -> dict[str, AttributionMap]:
    """The maps of all jobs: the shared pass first, then those with passes of their own."""
    if len({job.method.name for job in jobs}) != len(jobs):
        raise SpecError("a method is asked for twice; run them in two calls")
    with LOCK, torch.inference_mode(False):
        return _explained(model, jobs, images, target, repeat)


def _explained(
    model: ModelAdapter, jobs: Sequence[Job], images: Tensor, target: Target, repeat: int
) -> dict[str, AttributionMap]:
    """As `_explain`, by the one thread that may."""
    reference = _resolve(model, images, target, jobs, repeat)
    copies = images.expand(repeat, -1, -1, -1) if repeat > 1 else images
    found = {}
    for job in jobs:
        recorded = _recorded(model, job, target)
        given = Given(
            {need.signal: reference.signals[need] for need in recorded},
            [reference.flat[need] for need in recorded if need in reference.flat],
            float(any(need.signal not in FREE for need in recorded)) / repeat,
            float(any(need.signal in GRADIENTS for need in recorded)),
        )
        if job.method.own_passes:
            given.open = target is None and _chooses_itself(model, jobs)
            found[job.method.name] = _run_alone(model, job, copies, reference, given, repeat)
        else:
            result = job.method.compute(*(given.signals[one] for one in job.method.needs), **job.own_options())
            found[job.method.name] = _as_map(model, job, result, reference, given)
    return found


@dataclass
class Given:
    """What a method got: its signals, (B,) flags of flat gradients, and the passes per image that were made for them.

    open: whether its first pass is to fix the target.
    """

    signals: dict[Signal, object]
    flats: list[Tensor]
    forward: float
    backward: float
    open: bool = False


def _recorded(model: ModelAdapter, job: Job, target: Target) -> list[Need]:
    """What a method takes from the shared pass."""
    needs = [job.need(signal) for signal in job.method.needs if signal not in OWN_PASSES]
    return needs + [one for s in job.method.needs if s in ALTERED for one in prerequisites(model, job.need(s), target)]


def _chooses_itself(model: ModelAdapter, jobs: Sequence[Job]) -> bool:
    """Whether the one method asked for reads its target only after its first pass, which is over the clean images."""
    return len(jobs) == 1 and not model.embedding and jobs[0].method.first_pass_is_clean


def _resolve(model: ModelAdapter, images: Tensor, target: Target, jobs: Sequence[Job], repeat: int) -> Capture:
    """The shared pass; skipped when nothing needs it and the targets are given."""
    needs = [need for job in jobs for need in _recorded(model, job, target)]
    if target is None and _chooses_itself(model, jobs):
        target = torch.zeros(len(images), dtype=torch.int64, device=images.device)  # filled in by that pass
    if (
        isinstance(target, Tensor)
        and target.ndim == 1
        and not model.embedding
        and all(need.signal in FREE for need in needs)
    ):
        checked = TargetScore.of(model, images.new_empty(len(target), model.anatomy.outputs), target)
        images = images.expand(repeat, -1, -1, -1) if repeat > 1 else images
        with preserve_state(model.model):
            found = {need: free_signal(model, need, images, checked) for need in needs}
        return Capture(images.new_empty(0), checked, found, {})
    return capture(model, images, needs, target, repeat)


def _run_alone(
    model: ModelAdapter, job: Job, images: Tensor, reference: Capture, given: Given, repeat: int
) -> AttributionMap:
    """A method with passes of its own, on the frozen model with its passes counted."""
    counted = CountedForward(model, reference.scored)
    counted.clean = images if given.open else None
    given.signals |= {Signal.FORWARD: counted, Signal.TARGET_SCORE: counted.target_score}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(preserve_state(model.model))
        try:
            for signal in ALTERED & set(job.method.needs):
                value, forward, backward = altered(model, images, reference, job.need(signal))
                given.signals[signal] = value
                given.forward, given.backward = given.forward + forward, given.backward + backward
            if Signal.FEATURE_LAYER in job.method.needs:
                path = str(job.options.get("layer") or model.anatomy.feature_layer)
                tap = Tap(path, model.size, model.sequences, counted.watch, repeat)
                stack.enter_context(tapped(model.model, tap))
                given.signals[Signal.FEATURE_LAYER], counted.trunk_once = tap.identity, repeat > 1
            result = job.method.compute(*(given.signals[one] for one in job.method.needs), **job.own_options())
        except RuntimeError as error:
            if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
                raise CaptureError(f"{job.method.name}: no gradient of the score reaches it in {model.name}") from error
            raise
    given.forward += counted.seen_forward / len(images)
    given.backward += counted.seen_backward / len(images)
    unmoved = counted.flat(len(images))
    given.flats += [] if unmoved is None else [unmoved]
    return _as_map(model, job, result, reference, given)


def _as_map(
    model: ModelAdapter,
    job: Job,
    result: Tensor | tuple[Tensor, dict[str, Tensor]],
    reference: Capture,
    given: Given,
) -> AttributionMap:
    """Check what a method returned and say who made it."""
    values, detail = result if isinstance(result, tuple) else (result, {})
    values = values.detach().float()
    name = job.method.name
    if given.flats and bool((flat := torch.stack(given.flats).any(dim=0)).any()):
        raise CaptureError(
            f"{name}: the gradient of the score is zero at rounding level for image {int(flat.nonzero()[0])}; "
            f"the map would be noise ({model.name})"
        )
    if not bool(torch.isfinite(values).all()):
        raise CaptureError(f"{name} gave non-finite values on {model.name}")
    return AttributionMap(
        values,
        reference.target if reference.scored.function is None else torch.full_like(reference.target, -1),
        model=model.name,
        method=name,
        options=dict(job.options),
        detail=detail,
        probability=reference.probability,
        passes_forward=given.forward,
        passes_backward=given.backward,
    )
