"""The Explainer interface, and many methods of one model for the price of one forward and one backward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attncompare.arguments import check_images, check_model
from attncompare.capture.counting_forward import CountingForward
from attncompare.capture.extra_pass import ExtraPass
from attncompare.capture.forward_pass import Recorded, shared_pass
from attncompare.capture.target import Target
from attncompare.errors import CaptureError, SpecError
from attncompare.maps import AttributionMap
from attncompare.methods._base import Method, methods
from attncompare.models.adapter import ModelAdapter, resolve_layer
from attncompare.registry import Request, requested, signals
from attncompare.signals._base import Signal
from attncompare.state import LOCK, frozen_eval


class Explainer(Protocol):
    """All that the benchmark knows of a method: wrap any library in this and it can be scored."""

    name: str

    def explain(self, images: Tensor, target: Target = None) -> AttributionMap:
        """(B,3,H,W) in [0, 1] -> maps (B,h,w)."""
        ...


@dataclass(frozen=True)
class Job:
    """A method with its options resolved, and what it needs of a model.

    needs: its signals, in the order of its parameters. shared: those of the shared pass, with what the others take from it.
    """

    method: Method
    options: Mapping[str, object]
    needs: tuple[Signal, ...]
    shared: tuple[Signal, ...]

    def compute(self, values: Mapping[Signal, object]) -> Any:
        """What its function makes of the signals: a map, or a map and numbers beside it."""
        of_signals = {option.name for signal in self.needs for option in signal.options}
        own = {name: value for name, value in self.options.items() if name not in of_signals}
        return self.method.compute(*(values[signal] for signal in self.needs), **own)


def make_job(model: ModelAdapter, request: Request) -> Job:
    """Look up a method, check its options and that the model supplies what it needs."""
    [(method, options)] = requested(methods, [request])
    return _bind(model, method, options)


def _bind(model: ModelAdapter, method: Method, options: Mapping[str, object], target: Target = None) -> Job:
    """A method as it is run on a model; an error if the model lacks what it needs."""
    kinds = [signals.get(name) for name in method.needs]
    model.require(kinds, method.name)
    if options.get("layer") is not None:
        resolve_layer(model, str(options["layer"]))
    needs = tuple(kind(**{option.name: options[option.name] for option in kind.options}) for kind in kinds)
    shared = [one for one in needs if one.cost != "extra"]
    shared += [taken for one in needs if one.cost == "extra" for taken in one.takes(model, target)]
    return Job(method, options, needs, tuple(shared))


@dataclass(frozen=True)
class MethodExplainer:
    """One method on one model.

    >>> import attncompare as ac
    >>> model = ac.load_model("demo/vit")
    >>> explainer = ac.make_explainer(model, "attention_rollout", head_fusion="max")
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
        recorded = shared_pass(model, images, [one for job in jobs for one in job.shared], target, repeat)
        images = images.expand(repeat, -1, -1, -1) if repeat > 1 else images
        return {job.method.name: _explain_by(job, model, images, recorded) for job in jobs}


def _explain_by(job: Job, model: ModelAdapter, images: Tensor, recorded: Recorded) -> AttributionMap:
    """The map of one method: of what was recorded alone, or with passes of its own, which are counted."""
    values = {one: recorded.signals[one] for one in job.shared}
    own = [one for one in job.needs if one.cost == "extra"]
    if not own:
        return _as_map(job, model, recorded, job.compute(values))
    extra = ExtraPass(model, images, recorded, CountingForward(model, recorded.score))
    with frozen_eval(model.module, graph=True):
        values |= {one: one.run(extra) for one in own}
        with extra.forward.hooked():
            result = job.compute(values)
    return _as_map(job, model, recorded, result, extra.forward)


def _as_map(
    job: Job, model: ModelAdapter, recorded: Recorded, result: Any, own: CountingForward | None = None
) -> AttributionMap:
    """Check what a method returned and say who made it, of what, in how many passes."""
    values, detail = result if isinstance(result, tuple) else (result, {})
    values, name, score = values.detach().float(), job.method.name, recorded.score
    vanishing = [recorded.vanishing[one] for one in job.shared if one.backward]
    forward = any(one.cost == "shared" for one in job.shared) / recorded.repeat
    backward = float(bool(vanishing))
    if own is not None:
        images = len(score.target)
        vanishing += [] if own.reached is None else [own.reached[:images] == 0]
        forward, backward = forward + own.seen_forward / images, backward + own.seen_backward / images
    if vanishing and bool((zero := torch.stack(vanishing).any(dim=0)).any()):
        raise CaptureError(
            f"{name}: the gradient of the score is zero at rounding level for image {int(zero.nonzero()[0])}; "
            f"the map would be noise ({model.name})"
        )
    if not bool(torch.isfinite(values).all()):
        raise CaptureError(f"{name} gave non-finite values on {model.name}")
    return AttributionMap(
        values,
        score.target if score.function is None else torch.full_like(score.target, -1),
        model=model.name,
        method=name,
        options=dict(job.options),
        detail=detail,
        prompts=score.prompts,
        probability=recorded.probability,
        passes_forward=forward,
        passes_backward=backward,
    )
