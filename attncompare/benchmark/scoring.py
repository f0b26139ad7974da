"""Maps to values: one pass of the curve engine for all maps, then every metric."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.evidence import Again, Scene, Witness, measure, target_scorer, with_smaller_batches
from attncompare.benchmark.records import Record, cell_key
from attncompare.capture.arguments import check_images
from attncompare.capture.capture import left_as_found
from attncompare.capture.targets import Target, TargetScore, text_key
from attncompare.errors import AttnCompareError, SpecError, UnsupportedMethodError
from attncompare.explainer import Explainer, explain_together
from attncompare.maps import AttributionMap, resize_map
from attncompare.methods._base import methods
from attncompare.metrics._base import CURVES, FROM_METHOD, Evidence, Metric
from attncompare.metrics._base import metrics as all_metrics
from attncompare.metrics.perturbation import perturbation_curves
from attncompare.metrics.protocols import Protocol, get_protocol
from attncompare.registry import Request, listed, split_request

MetricRequest = Request


def choose_metrics(requests: Sequence[MetricRequest], protocol: Protocol) -> list[Metric]:
    """Look up metrics and check their options; SpecError for one of two maps or whose curve the protocol lacks."""
    chosen = []
    for request in listed(requests):
        name, given = split_request(request)
        metric = all_metrics.get(name).with_options(given)
        if metric.pairwise:
            raise SpecError(f"metric {name} compares two maps; use attncompare.compare_maps(first, second)")
        if Evidence.INSERTION_CURVE in metric.needs and protocol.insertion is None:
            raise SpecError(
                f"protocol {protocol.name} has no insertion, so {name} is not defined; try morf, lerf or srg"
            )
        chosen.append(metric)
    return chosen


def again_of(
    model: ModelAdapter, method: str, options: Mapping[str, object], explainer: Explainer | None = None
) -> Again | None:
    """How a map can be made once more: by the given explainer, else by the method of that name, if there is one."""
    if explainer is not None:
        return lambda images, target: explainer.explain(images, target).values
    if method not in methods.names():
        return None
    return lambda images, target: explain_together(model, [(method, options)], images, target)[method].values


@dataclass(frozen=True)
class Scored:
    """Values of one map under one metric: (B,), NaN where undefined; and the curve they come from.

    reason: why there are no values at all, "" where there are.
    """

    metric: Metric
    values: Tensor
    curve: Tensor | None
    reason: str = ""


def score_maps(
    model: ModelAdapter,
    scene: Scene,
    maps: Mapping[str, Tensor],
    wanted: Sequence[Metric],
    protocol: Protocol,
    *,
    explainers: Mapping[str, Again] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, list[Scored]]:
    """Score several maps (B,h,w) of the same images under several metrics; all curves in the same stream of batches.

    explainers: what makes each map, for metrics that run the method again. Metrics whose masks or explainer are missing
    are left out. A metric that raises has values of its reason. Out of memory halves the batch, down to 1.
    """
    found = _curves(model, scene, maps, wanted, protocol, batch_size=batch_size, seed=seed)
    witness = Witness(model, scene, batch_size, seed)
    shared = witness.shared(wanted) | {Evidence.SHARES: protocol.shares(model.size)}
    scored: dict[str, list[Scored]] = {}
    for name, values in maps.items():
        evidence = shared | found[name] | {Evidence.MAPS: resize_map(values, model.size).cpu()}
        made = witness.again(explainers[name]) if explainers and name in explainers else {}
        ready = evidence.keys() | made.keys()
        scored[name] = [_score_one(m, evidence, made, len(values)) for m in wanted if ready >= set(m.needs)]
    return scored


def _score_one(
    metric: Metric, evidence: Mapping[Evidence, object], made: Mapping[Evidence, Callable[[], object]], count: int
) -> Scored:
    """One metric on one map; a fault in running the method again is a reason, not an end."""
    curve = evidence[metric.curve] if metric.curve else None
    try:
        values, reason = measure(metric, evidence, made), ""
    except (AttnCompareError, RuntimeError) as error:
        if not FROM_METHOD & set(metric.needs):
            raise
        values, reason = torch.full((count,), torch.nan), f"{type(error).__name__}: {error}".splitlines()[0]
    return Scored(metric, values, curve if isinstance(curve, Tensor) else None, reason)


def _curves(
    model: ModelAdapter,
    scene: Scene,
    maps: Mapping[str, Tensor],
    wanted: Sequence[Metric],
    protocol: Protocol,
    *,
    batch_size: int,
    seed: int,
) -> dict[str, dict[Evidence, Tensor]]:
    """The curves that the metrics summarise, of all maps."""
    curves = [curve for curve in CURVES if any(curve in metric.curves for metric in wanted)]
    if not curves or not maps:
        return {name: {} for name in maps}
    score = target_scorer(model, scene.target, scene.rows, protocol.score)
    mean = model.source.preprocessing.mean
    with torch.no_grad(), left_as_found(model.model):
        return with_smaller_batches(
            lambda size: perturbation_curves(
                score, scene.images, maps, protocol, curves, mean=mean, batch_size=size, seed=seed
            ),
            batch_size,
        )


def as_records(
    scored: Scored, names: Sequence[str], attribution: AttributionMap, protocol: str, key: str
) -> list[Record]:
    """One record per image; an undefined value is a failed record with the metric's reason."""
    model, method, target = attribution.model, attribution.method, attribution.target
    degenerate = is_degenerate(attribution.values)
    records = []
    for i, name in enumerate(names):
        value = float(scored.values[i])
        ok = value == value
        records.append(
            Record(
                model,
                method,
                name,
                int(target[i]),
                scored.metric.name,
                protocol if scored.metric.curves else scored.metric.setting,
                value if ok else None,
                "ok" if ok else "failed",
                "" if ok else why_undefined(scored, i),
                key,
                None if scored.curve is None else [round(float(v), 6) for v in scored.curve[i]],
                bool(degenerate[i]),
            )
        )
    return records


def why_undefined(scored: Scored, image: int) -> str:
    """Why there is no value for an image."""
    if scored.curve is not None and not bool(torch.isfinite(scored.curve[image]).all()):
        return "the model's score of an altered image is not finite"
    return scored.reason or scored.metric.undefined


def is_degenerate(values: Tensor) -> Tensor:
    """(B,h,w) -> (B,) whether a map is constant, so that it ranks nothing."""
    flat = values.flatten(1)
    return flat.amax(dim=1) == flat.amin(dim=1)


def score(
    model: ModelAdapter,
    images: Tensor,
    attribution: AttributionMap,
    *,
    metrics: Sequence[MetricRequest] = ("deletion", "insertion"),
    protocol: str = "rise",
    masks: Tensor | None = None,
    explainer: Explainer | None = None,
    target: Target = None,
) -> list[Record]:
    """Score the maps of one explainer: one record per image and metric.

    The target is the one the map was made for; where that is a function, give it again. metrics: names, or (name,
    options). protocol: a name, or the path of a TOML file. masks: (B,H,W) bool for metrics that need the object.
    explainer: who made the map, for metrics that run it again; not needed for the methods of this library.

    >>> import attncompare as ac
    >>> model = ac.load_model("demo/cnn")
    >>> images = torch.rand(1, 3, 64, 64)
    >>> records = ac.score(model, images, ac.make_explainer(model, "cam").explain(images), protocol="rise-fast")
    >>> [record.measure for record in records]
    ['deletion', 'insertion']
    """
    chosen = get_protocol(protocol)
    wanted = choose_metrics(metrics, chosen)
    images = check_images(model, images)
    _check(model, images, attribution, wanted, masks)
    again = again_of(model, attribution.method, attribution.options, explainer)
    with torch.no_grad(), left_as_found(model.model):
        clean = model.forward(images)
        fixed = TargetScore.of(model, clean, _target_of(attribution, target))
    scene = Scene(images, fixed, masks)
    maps = {attribution.method: attribution.values.to(images.device)}
    explainers = {} if again is None else {attribution.method: again}
    missing = [metric.name for metric in wanted if again is None and FROM_METHOD & set(metric.needs)]
    if missing:
        raise SpecError(
            f"{', '.join(missing)} runs the method again; give explainer=, as {attribution.method} is not ours"
        )
    found = score_maps(model, scene, maps, wanted, chosen, explainers=explainers)
    content = images.cpu().contiguous().numpy().tobytes() + attribution.values.cpu().contiguous().numpy().tobytes()
    key = cell_key(
        {
            "kind": "single",
            "weights": model.weights_hash,
            "structure": model.structure_hash,
            "preprocessing": vars(model.source.preprocessing),
            "method": attribution.method,
            "options": dict(attribution.options),
            "metrics": [metric.describe() for metric in wanted],
            "protocol": chosen.describe(),
            "target": _target_key(model, fixed, clean),
            "images_and_maps": hashlib.sha256(content).hexdigest(),
        }
    )
    names = [str(i) for i in range(len(images))]
    return [
        record
        for scored in found[attribution.method]
        for record in as_records(scored, names, attribution, chosen.name, key)
    ]


def _target_key(model: ModelAdapter, target: TargetScore, clean: Tensor) -> object:
    """What tells one target from another: a function by its values on the clean images, to 4 decimals."""
    if target.function is not None:
        return [round(float(value), 4) for value in target.function(clean)]
    return text_key(model, target.prompts) if target.prompts else target.target.tolist()


def _target_of(attribution: AttributionMap, given: Target) -> Target:
    """What a map was made for; SpecError where only the caller can know."""
    of_function = bool((attribution.target < 0).any())
    if of_function != callable(given) or (given is not None and not callable(given)):
        raise SpecError(
            "the map explains a function of the outputs: give that function as target="
            if of_function
            else "the target is the one the map was made for; only a function is given again"
        )
    return given if of_function else attribution.prompts or attribution.target


def _check(
    model: ModelAdapter, images: Tensor, attribution: AttributionMap, wanted: Sequence[Metric], masks: Tensor | None
) -> None:
    """Refuse a map that cannot be scored, metrics whose object is not known, and masks that are not those of the images."""
    if not isinstance(attribution, AttributionMap):
        raise SpecError(
            f"the map is a {type(attribution).__name__}; an AttributionMap is needed, as explain returns it"
        )
    if attribution.model not in ("", model.name):
        raise SpecError(f"the map is of {attribution.model}; {model.name} cannot score it under that name")
    shape = (len(images), *model.size)
    if masks is not None and not (isinstance(masks, Tensor) and masks.dtype == torch.bool and masks.shape == shape):
        found = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise SpecError(f"masks are {found}; a torch.bool tensor {shape} is needed")
    for metric in wanted:
        if metric.needs_mask and masks is None:
            raise SpecError(f"metric {metric.name} needs masks=(B, H, W), the object that decides the class")
    if not attribution.spatial:
        raise UnsupportedMethodError(
            f"{attribution.method} gives one value per channel; it cannot be scored on an image"
        )
    finite = torch.isfinite(attribution.values).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise SpecError(f"the map of image {int((~finite).nonzero()[0])} has values that are not finite")


def fixed_target(model: ModelAdapter, images: Tensor, target: Target) -> TargetScore:
    """The target on clean images, from one forward pass."""
    return TargetScore.of(model, model.forward(images), target)
