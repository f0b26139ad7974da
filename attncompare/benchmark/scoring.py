"""Maps to values: one pass of the curve engine for all maps, then every metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.evidence import Again, Passes, Scene, Witness, measure, target_scorer, with_smaller_batches
from attncompare.benchmark.records import Record
from attncompare.capture.state import preserve_state
from attncompare.errors import SpecError, reason_of
from attncompare.explainer import Explainer, explain_together
from attncompare.maps import AttributionMap, resize_map
from attncompare.methods._base import methods
from attncompare.metrics._base import CURVES, Evidence, Metric
from attncompare.metrics._base import metrics as all_metrics
from attncompare.metrics.perturbation import perturbation_curves
from attncompare.metrics.protocols import Protocol
from attncompare.registry import Request, requested

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
    fault: str,
) -> Scored:
    """One metric on one map; what goes wrong is a reason, not an end. fault: why there are no curves, ""."""
    reason = fault if metric.curves else ""
    try:
        if not reason:
            curve = evidence[metric.curve] if metric.curve else None
            return Scored(metric, measure(metric, evidence, made), curve if isinstance(curve, Tensor) else None)
    except Exception as error:  # every fault of a metric becomes a record
        reason = reason_of(error)
    return Scored(metric, torch.full((count,), torch.nan), None, reason)


def _curves(
    model: ModelAdapter,
    scene: Scene,
    maps: Mapping[str, Tensor],
    wanted: Sequence[Metric],
    protocol: Protocol,
    passes: Passes,
) -> tuple[dict[str, dict[Evidence, Tensor]], str]:
    """The curves that the metrics summarise, of all maps; or the reason why there are none."""
    curves = [curve for curve in CURVES if any(curve in metric.curves for metric in wanted)]
    nothing: dict[str, dict[Evidence, Tensor]] = {name: {} for name in maps}
    if not curves or not maps:
        return nothing, ""
    score = target_scorer(model, scene.target, scene.rows, protocol.score, passes)
    mean = model.source.preprocessing.mean
    try:
        with torch.no_grad(), preserve_state(model.model):
            return with_smaller_batches(
                lambda size: perturbation_curves(
                    score, scene.images, maps, protocol, curves, mean=mean, batch_size=size, seed=passes.seed
                ),
                passes.batch_size,
            ), ""
    except Exception as error:  # whatever a model makes of altered images
        return nothing, reason_of(error)


def as_records(
    scored: Scored, names: Sequence[str], attribution: AttributionMap, protocol: str, key: str
) -> list[Record]:
    """One record per image; an undefined value is a failed record with the metric's reason."""
    model, method, target = attribution.model, attribution.method, attribution.target
    degenerate = is_degenerate(attribution.values)
    records = []
    for i, name in enumerate(names):
        value = float(scored.values[i])
        ok = isfinite(value)
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
