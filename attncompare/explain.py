"""The Explainer interface, and many methods of one model for the price of one forward and one backward pass."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attncompare.capture.altered import altered, prerequisites
from attncompare.capture.arguments import check_images, check_model
from attncompare.capture.capture import Capture, shared_pass
from attncompare.capture.features import Tap, tapped
from attncompare.capture.listening import layer_of, resolve_layer
from attncompare.capture.recorders import Need
from attncompare.capture.state import LOCK, frozen_eval
from attncompare.capture.targets import CountedForward, Target
from attncompare.errors import CaptureError, SpecError
from attncompare.maps import AttributionMap
from attncompare.methods._base import Method, methods
from attncompare.models.adapter import ModelAdapter
from attncompare.registry import Request, requested
from attncompare.signals import ALTERED, FREE, GRADIENTS, OWN_PASSES, SIGNAL_OPTIONS, Signal


class Explainer(Protocol):
    """All that the benchmark knows of a method: wrap any library in this and it can be scored."""

    name: str

    def explain(self, images: Tensor, target: Target = None) -> AttributionMap:
        """(B,3,H,W) in [0, 1] -> maps (B,h,w)."""
        ...


@dataclass(frozen=True)
class Job:
    """A method with its options resolved, and what it needs of a model.

    needs: of each signal, in the order of its parameters. shared: what it takes from the shared pass.
    """

    method: Method
    options: Mapping[str, object]
    needs: Mapping[Signal, Need]
    shared: tuple[Need, ...]

    def compute(self, signals: Mapping[Signal, object]) -> Any:
        """What its function makes of the signals: a map, or a map and numbers beside it."""
        of_signals = {name for need in self.needs.values() for name, _ in need.options}
        own = {name: value for name, value in self.options.items() if name not in of_signals}
        return self.method.compute(*(signals[one] for one in self.needs), **own)


def make_job(model: ModelAdapter, request: Request) -> Job:
    """Look up a method, check its options and that the model supplies what it needs."""
    [(method, options)] = requested(methods, [request])
    return _bind(model, method, options)


def _bind(model: ModelAdapter, method: Method, options: Mapping[str, object], target: Target = None) -> Job:
    """A method as it is run on a model; an error if the model lacks what it needs."""
    model.require(frozenset(method.needs), method.name)
    if options.get("layer") is not None:
        resolve_layer(model, str(options["layer"]))
    needs = {
        one: Need(one, tuple((o.name, options[o.name]) for o in SIGNAL_OPTIONS.get(one, ()))) for one in method.needs
    }
    shared = [need for signal, need in needs.items() if signal not in OWN_PASSES]
    shared += [one for signal in ALTERED & needs.keys() for one in prerequisites(model, needs[signal], target)]
    return Job(method, options, needs, tuple(shared))


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
    check_model(model)
    return MethodExplainer(model, name, make_job(model, (name, options)).options)


def explain_together(
    model: ModelAdapter, requests: Sequence[Request], images: Tensor, target: Target = None
) -> dict[str, AttributionMap]:
    """Explain images by several methods at once; those that read the shared pass cost one forward and one backward.

    images: (B,3,H,W) float32 in [0, 1] at the model's size. Returns method name -> AttributionMap. The target is fixed
    on the clean images and is the same for all methods. The first time that a model is recorded in some way, one more
    forward pass checks that recording leaves its logits as they are. Raises UnsupportedMethodError before anything runs.

    >>> import attncompare as ac
    >>> maps = ac.explain_together(ac.load_model("demo/cnn"), ["layer_cam", "saliency"], torch.rand(1, 3, 64, 64))
    >>> {name: tuple(m.values.shape) for name, m in maps.items()}
    {'layer_cam': (1, 8, 8), 'saliency': (1, 64, 64)}
    """
    return _explain(model, requests, check_images(model, images), target)


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
    return _explain(model, requests, image, targets, len(targets))


def _explain(
    model: ModelAdapter, requests: Sequence[Request], images: Tensor, target: Target, repeat: int = 1
) -> dict[str, AttributionMap]:
    """The maps of all methods: the shared pass first, then those with passes of their own."""
    jobs = [_bind(model, method, options, target) for method, options in requested(methods, requests)]
    if len({job.method.name for job in jobs}) != len(jobs):
        raise SpecError("a method is asked for twice; run them in two calls")
    with LOCK, torch.inference_mode(False):
        recorded = shared_pass(model, images, [need for job in jobs for need in job.shared], target, repeat)
        images = images.expand(repeat, -1, -1, -1) if repeat > 1 else images
        return {job.method.name: _explain_by(job, model, images, recorded) for job in jobs}


def _explain_by(job: Job, model: ModelAdapter, images: Tensor, recorded: Capture) -> AttributionMap:
    """The map of one method: of what was recorded alone, or with passes of its own, which are counted."""
    signals = {need.signal: recorded.signals[need] for need in job.shared}
    if not job.method.own_passes:
        return _as_map(job, model, recorded, job.compute(signals))
    counted = CountedForward(model, recorded.scored)
    signals |= {Signal.FORWARD: counted, Signal.TARGET_SCORE: counted.target_score}
    with ExitStack() as stack:
        stack.enter_context(frozen_eval(model.model, graph=True))
        try:
            for signal in ALTERED & job.needs.keys():
                signals[signal], *passes = altered(model, images, recorded, job.needs[signal])
                counted.add(*passes)
            if Signal.FEATURE_LAYER in job.needs:
                tap = Tap(
                    layer_of(model, job.needs[Signal.FEATURE_LAYER]),
                    model.size,
                    model.token_layouts,
                    counted.watch,
                    recorded.repeat,
                )
                stack.enter_context(tapped(model.model, tap))
                signals[Signal.FEATURE_LAYER], counted.trunk_once = tap.identity, recorded.repeat > 1
            result = job.compute(signals)
        except RuntimeError as error:
            if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
                raise CaptureError(f"{job.method.name}: no gradient of the score reaches it in {model.name}") from error
            raise
    return _as_map(job, model, recorded, result, counted)


def _as_map(
    job: Job, model: ModelAdapter, recorded: Capture, result: Any, counted: CountedForward | None = None
) -> AttributionMap:
    """Check what a method returned and say who made it, of what, in how many passes."""
    values, detail = result if isinstance(result, tuple) else (result, {})
    values, name, scored = values.detach().float(), job.method.name, recorded.scored
    flat = [recorded.flat[need] for need in job.shared if need in recorded.flat]
    forward = any(need.signal not in FREE for need in job.shared) / recorded.repeat
    backward = float(any(need.signal in GRADIENTS for need in job.shared))
    if counted is not None:
        images = len(scored.target)
        flat += [] if counted.reached is None else [counted.reached[:images] == 0]
        forward, backward = forward + counted.seen_forward / images, backward + counted.seen_backward / images
    if flat and bool((zero := torch.stack(flat).any(dim=0)).any()):
        raise CaptureError(
            f"{name}: the gradient of the score is zero at rounding level for image {int(zero.nonzero()[0])}; "
            f"the map would be noise ({model.name})"
        )
    if not bool(torch.isfinite(values).all()):
        raise CaptureError(f"{name} gave non-finite values on {model.name}")
    return AttributionMap(
        values,
        scored.target if scored.function is None else torch.full_like(scored.target, -1),
        model=model.name,
        method=name,
        options=dict(job.options),
        detail=detail,
        prompts=scored.prompts,
        probability=recorded.probability,
        passes_forward=forward,
        passes_backward=backward,
    )
