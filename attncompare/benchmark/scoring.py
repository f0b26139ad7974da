"""Maps to values: one pass of the curve engine for all maps, then every metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from attncompare.benchmark.evidence import Again, Passes, Scene, Witness, measure, target_scorer, with_smaller_batches
from attncompare.benchmark.records import Record
from attncompare.errors import Failure, SpecError
from attncompare.explain import Explainer, explain_together
from attncompare.maps import AttributionMap, resize_map
from attncompare.methods._base import methods
from attncompare.metrics._base import CURVES, Evidence, Metric
from attncompare.metrics._base import metrics as all_metrics
from attncompare.metrics.perturbation import perturbation_curves
from attncompare.metrics.protocols import Protocol
from attncompare.models.adapter import ModelAdapter
from attncompare.registry import Request, requested
from attncompare.state import preserve_state

MetricRequest = Request


def choose_metrics(requests: Sequence[MetricRequest], protocol: Protocol) -> list[Metric]:
    """Look up metrics and check their options; SpecError for one of two maps or whose curve the protocol lacks."""
    chosen = []
    for found, options in requested(all_metrics, requests):
        metric, name = found.with_options(options), found.name
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

    failure: why there are no values at all, None where there are.
    """

    metric: Metric
    values: Tensor
    curve: Tensor | None
    failure: Failure | None = None


def score_maps(
    model: ModelAdapter,
    scene: Scene,
    maps: Mapping[str, Tensor],
    wanted: Sequence[Metric],
    protocol: Protocol,
    *,
    explainers: Mapping[str, Again] | None = None,
    passes: Passes = Passes(),  # noqa: B008 (frozen)
) -> dict[str, list[Scored]]:
    """Score several maps (B,h,w) of the same images under several metrics; all curves in the same stream of batches.

    explainers: what makes each map, for metrics that run the method again. Metrics whose masks or explainer are missing
    are left out. A metric that raises has no values but its reason, and the others go on; so have all metrics of curves
    when the altered images cannot be scored. Out of memory halves the batch, down to 1.
    """
    found, fault = _curves(model, scene, maps, wanted, protocol, passes)
    witness = Witness(model, scene, passes)
    shared = witness.shared(wanted) | {Evidence.SHARES: protocol.shares(model.size)}
    scored: dict[str, list[Scored]] = {}
    for name, values in maps.items():
        evidence = shared | found[name] | {Evidence.MAPS: resize_map(values, model.size).cpu()}
        made = witness.again(explainers[name]) if explainers and name in explainers else {}
        ready = evidence.keys() | made.keys() | set(CURVES)
        wanted_here = [metric for metric in wanted if ready >= set(metric.needs)]
        scored[name] = [_score_one(metric, evidence, made, len(values), fault) for metric in wanted_here]
    return scored


def _score_one(
    metric: Metric,
    evidence: Mapping[Evidence, object],
    made: Mapping[Evidence, Callable[[], object]],
    count: int,
    fault: Failure | None,
) -> Scored:
    """One metric on one map; what goes wrong is a reason, not an end. fault: why there are no curves, or None."""
    failure = fault if metric.curves else None
    try:
        if not failure:
            curve = evidence[metric.curve] if metric.curve else None
            return Scored(metric, measure(metric, evidence, made), curve if isinstance(curve, Tensor) else None)
    except Exception as error:  # every fault of a metric becomes a record
        failure = Failure.of(error)
    return Scored(metric, torch.full((count,), torch.nan), None, failure)


def _curves(
    model: ModelAdapter,
    scene: Scene,
    maps: Mapping[str, Tensor],
    wanted: Sequence[Metric],
    protocol: Protocol,
    passes: Passes,
) -> tuple[dict[str, dict[Evidence, Tensor]], Failure | None]:
    """The curves that the metrics summarize, of all maps; or the reason why there are none."""
    curves = [curve for curve in CURVES if any(curve in metric.curves for metric in wanted)]
    nothing: dict[str, dict[Evidence, Tensor]] = {name: {} for name in maps}
    if not curves or not maps:
        return nothing, None
    score = target_scorer(model, scene.target, scene.rows, protocol.score, passes)
    mean = model.mean
    try:
        with torch.no_grad(), preserve_state(model.module):
            return with_smaller_batches(
                lambda size: perturbation_curves(
                    score, scene.images, maps, protocol, curves, mean=mean, batch_size=size, seed=passes.seed
                ),
                passes.batch_size,
            ), None
    except Exception as error:  # whatever a model makes of altered images
        return nothing, Failure.of(error)


def as_records(
    scored: Scored, names: Sequence[str], attribution: AttributionMap, protocol: str, key: str
) -> list[Record]:
    """One record per image; an undefined value is a failed record with the metric's reason."""
    metric, degenerate = scored.metric, is_degenerate(attribution.values)
    setting = protocol if metric.curves else metric.setting
    records = []
    for i, name in enumerate(names):
        owner = (attribution.model, attribution.method, name, int(attribution.target[i]), metric.name, setting)
        curve = None if scored.curve is None else [round(float(v), 6) for v in scored.curve[i]]
        more = (key, curve, bool(degenerate[i]))
        value = float(scored.values[i])
        records.append(
            Record(*owner, value, "ok", "", *more)
            if isfinite(value)
            else Record.failed(owner, why_undefined(scored, i), *more)
        )
    return records


def why_undefined(scored: Scored, image: int) -> Failure:
    """Why there is no value for an image."""
    if scored.curve is not None and not bool(torch.isfinite(scored.curve[image]).all()):
        return Failure("undefined", "the model's score of an altered image is not finite")
    return scored.failure or Failure("undefined", scored.metric.undefined)


def is_degenerate(values: Tensor) -> Tensor:
    """(B,h,w) -> (B,) whether a map is constant, so that it ranks nothing."""
    flat = values.flatten(1)
    return flat.amax(dim=1) == flat.amin(dim=1)
