"""Scores of the maps that one explainer made, outside a benchmark run."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.arguments import check_images
from attncompare.benchmark.evidence import Scene, clean_outputs
from attncompare.benchmark.records import Record, cell_key
from attncompare.benchmark.scoring import MetricRequest, again_of, as_records, choose_metrics, score_maps
from attncompare.capture.target import Target, TargetScore, text_key
from attncompare.errors import SpecError, UnsupportedMethodError
from attncompare.explain import Explainer
from attncompare.maps import AttributionMap
from attncompare.metrics._base import FROM_METHOD, Metric
from attncompare.metrics.protocols import Protocol
from attncompare.metrics.user_protocols import get_protocol
from attncompare.models.adapter import ModelAdapter
from attncompare.models.fingerprint import bytes_of, structure_hash, weights_hash
from attncompare.state import preserve_state


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
    explainer: who made the map, for metrics that run it again; not needed for the methods of this library. Scores are those
    of float32, also under autocast.

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
    if any(metric.curves for metric in wanted):
        chosen.check(model.size)
    _check(model, images, attribution, wanted, masks)
    again = again_of(model, attribution.method, attribution.options, explainer)
    exact = torch.autocast(images.device.type, enabled=False)
    with exact, torch.no_grad(), preserve_state(model.module):
        clean = clean_outputs(model, images)
        fixed = TargetScore.of(model, clean, _target_of(attribution, target))
    scene = Scene(images, fixed, masks)
    maps = {attribution.method: attribution.values.to(images.device)}
    explainers = {} if again is None else {attribution.method: again}
    missing = [metric.name for metric in wanted if again is None and FROM_METHOD & set(metric.needs)]
    if missing:
        raise SpecError(
            f"{', '.join(missing)} runs the method again; give explainer=, as {attribution.method} is not ours"
        )
    with exact:
        found = score_maps(model, scene, maps, wanted, chosen, explainers=explainers)
    key = _key(model, images, attribution, wanted, chosen, _target_key(model, fixed, clean))
    names = [str(i) for i in range(len(images))]
    return [
        record
        for scored in found[attribution.method]
        for record in as_records(scored, names, attribution, chosen.name, key)
    ]


def _key(
    model: ModelAdapter,
    images: Tensor,
    attribution: AttributionMap,
    wanted: Sequence[Metric],
    protocol: Protocol,
    target: object,
) -> str:
    """What the values depend on."""
    content = b"".join(bytes_of(each) for each in (images, attribution.values))
    return cell_key(
        {
            "kind": "single",
            "weights": weights_hash(model.module),  # anew: the caller may have trained it since
            "structure": structure_hash(model.module, *model.source.own_recorder),
            "preprocessing": vars(model.source.preprocessing),
            "method": attribution.method,
            "options": dict(attribution.options),
            "metrics": [metric.describe() for metric in wanted],
            "protocol": protocol.describe(),
            "target": target,
            "images_and_maps": hashlib.sha256(content).hexdigest(),
        }
    )


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
