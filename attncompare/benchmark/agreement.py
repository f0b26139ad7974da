"""How far maps agree: two methods on one model, or two models on one image."""

from collections.abc import Sequence
from hashlib import sha256

import torch

from attncompare.benchmark.records import Record, cell_key
from attncompare.benchmark.scoring import MetricRequest, Scored, as_records
from attncompare.errors import SpecError
from attncompare.maps import AttributionMap, resize_map
from attncompare.metrics._base import Evidence
from attncompare.metrics._base import metrics as all_metrics
from attncompare.registry import requested

PAIRWISE = ("rank_correlation", "ssim", "top_k_overlap")


def compare_maps(
    first: AttributionMap,
    second: AttributionMap,
    *,
    metrics: Sequence[MetricRequest] = PAIRWISE,
    size: tuple[int, int] = (224, 224),
) -> list[Record]:
    """Compare the maps of the same images, one record per image and metric; both are enlarged to `size` first.

    Model and method of a record are those of both maps, "first | second", once where they are the same. Metrics of one
    map are SpecError, as are maps of another number of images, and maps over channels.

    >>> import attncompare as ac
    >>> model, images = ac.load_model("demo/vit"), torch.rand(1, 3, 64, 64)
    >>> maps = ac.explain_together(model, ["saliency", "attention_rollout"], images)
    >>> records = ac.compare_maps(maps["saliency"], maps["attention_rollout"], metrics=["rank_correlation"])
    >>> records[0].measure, records[0].method, -1 <= records[0].value <= 1
    ('rank_correlation', 'saliency | attention_rollout', True)
    """
    if not isinstance(first, AttributionMap) or not isinstance(second, AttributionMap):
        raise SpecError(
            f"{type(first).__name__} and {type(second).__name__} were given; two AttributionMaps are compared"
        )
    if not first.spatial or not second.spatial:
        raise SpecError("maps over channels do not lie on the image; they cannot be compared there")
    if len(first.values) != len(second.values):
        raise SpecError(f"maps of {len(first.values)} and {len(second.values)} images cannot be compared")
    both = [resize_map(one.values.cpu().float(), size) for one in (first, second)]
    if not all(bool(torch.isfinite(one).all()) for one in both):
        raise SpecError("a map has values that are not finite")
    owner = AttributionMap(
        both[0],
        first.target,
        model=_both(first.model, second.model),
        method=_both(first.method, second.method),
    )
    shown = sha256(b"".join(one.contiguous().numpy().tobytes() for one in both)).hexdigest()
    records = []
    for found, options in requested(all_metrics, metrics):
        metric = found.with_options(options)
        if not metric.pairwise:
            raise SpecError(f"metric {metric.name} scores one map; use attncompare.score")
        values = metric.values({Evidence.MAPS: both[0], Evidence.OTHER_MAPS: both[1]})
        key = cell_key({"kind": "pair", "metric": metric.describe(), "size": size, "maps": shown})
        names = [str(i) for i in range(len(values))]
        records += as_records(Scored(metric, values, None), names, owner, "", key)
    return records


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first} | {second}"
