"""Maps to values: one pass of the curve engine for all maps, then every metric."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.records import Record, cell_key
from attncompare.capture.capture import left_as_found
from attncompare.capture.targets import Target, TargetScore, text_key
from attncompare.errors import SpecError, UnsupportedMethodError
from attncompare.explainer import check_images
from attncompare.maps import AttributionMap, resize_map
from attncompare.metrics._base import CURVES, Evidence, Metric
from attncompare.metrics._base import metrics as all_metrics
from attncompare.metrics.perturbation import perturbation_curves
from attncompare.metrics.protocols import Protocol, get_protocol


@dataclass(frozen=True)
class Scored:
    """Values of one map under one metric: (B,), NaN where undefined; and the curve they come from."""

    metric: Metric
    values: Tensor
    curve: Tensor | None


def target_scorer(model: ModelAdapter, target: TargetScore, index: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The black box that perturbation metrics query: altered copies -> probability of the fixed target (or cosine).

    index: which of the target's images are being scored, (B,).
    """

    def score(images: Tensor, which: Tensor) -> Tensor:
        return target.probability(model.forward(images), index[which])

    return score


@dataclass(frozen=True)
class Scene:
    """Clean images (B,3,H,W), the target fixed on them, and where the evidence is known (B,H,W) bool its masks."""

    images: Tensor
    target: TargetScore
    masks: Tensor | None = None
    index: Tensor | None = None

    def subset(self, chosen: Sequence[int]) -> "Scene":
        """Some of the images; the target still knows all of them."""
        index = torch.tensor(chosen, device=self.images.device)
        masks = None if self.masks is None else self.masks[index.cpu()]
        return Scene(self.images[index], self.target, masks, index)

    @property
    def targets(self) -> Tensor:
        """(B,) the explained outputs."""
        return self.target.target if self.index is None else self.target.target[self.index]


def score_maps(
    model: ModelAdapter,
    scene: Scene,
    maps: Mapping[str, Tensor],
    wanted: Sequence[Metric],
    protocol: Protocol,
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, list[Scored]]:
    """Score several maps (B,h,w) of the same images under several metrics, all in the same stream of batches.

    Metrics that need masks are left out where the scene has none. Out of memory halves the batch, down to 1.
    """
    curves = [c for c in Evidence if c in CURVES and any(m.curve is c for m in wanted)]
    found: dict[str, dict[Evidence, Tensor]] = {name: {} for name in maps}
    if curves and maps:
        everything = torch.arange(len(scene.images), device=scene.images.device)
        with torch.no_grad(), left_as_found(model.model):
            found = _with_smaller_batches(
                lambda size: perturbation_curves(
                    target_scorer(model, scene.target, everything if scene.index is None else scene.index),
                    scene.images,
                    maps,
                    protocol,
                    curves,
                    mean=model.source.preprocessing.mean,
                    batch_size=size,
                    seed=seed,
                ),
                batch_size,
            )
    scored: dict[str, list[Scored]] = {}
    for name, values in maps.items():
        evidence: dict[Evidence, Tensor] = dict(found[name])
        evidence[Evidence.MAPS] = resize_map(values, model.size).cpu()
        if scene.masks is not None:
            evidence[Evidence.MASKS] = scene.masks.cpu()
        scored[name] = []
        for metric in wanted:
            if all(need in evidence for need in metric.needs):
                curve = evidence[metric.curve] if metric.curve else None
                scored[name].append(Scored(metric, metric.compute(*(evidence[n] for n in metric.needs)), curve))
    return scored


T = TypeVar("T")


def _with_smaller_batches(run: Callable[[int], T], batch_size: int) -> T:
    """Run; when memory runs out try again with half the batch, down to 1."""
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


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
                protocol if scored.metric.curve else "",
                value if ok else None,
                "ok" if ok else "failed",
                "" if ok else scored.metric.undefined,
                key,
                None if scored.curve is None else [round(float(v), 6) for v in scored.curve[i]],
                bool(degenerate[i]),
            )
        )
    return records


def is_degenerate(values: Tensor) -> Tensor:
    """(B,h,w) -> (B,) whether a map is constant, so that it ranks nothing."""
    flat = values.flatten(1)
    return flat.amax(dim=1) == flat.amin(dim=1)


def score(
    model: ModelAdapter,
    images: Tensor,
    attribution: AttributionMap,
    *,
    metrics: Sequence[str] = ("deletion", "insertion"),
    protocol: str = "rise",
    masks: Tensor | None = None,
    target: Target = None,
) -> list[Record]:
    """Score the maps of one explainer: one record per image and metric.

    The target is the one the map was made for; where that is a function, give it again. masks: (B,H,W) bool for metrics
    that need the object.

    >>> import attncompare as ac
    >>> model = ac.load_model("demo/cnn")
    >>> images = torch.rand(1, 3, 64, 64)
    >>> records = ac.score(model, images, ac.make_explainer(model, "cam").explain(images), protocol="rise-fast")
    >>> [record.measure for record in records]
    ['deletion', 'insertion']
    """
    wanted = [all_metrics.get(name) for name in metrics]
    images = check_images(model, images)
    for metric in wanted:
        if metric.needs_mask and masks is None:
            raise SpecError(f"metric {metric.name} needs masks=(B, H, W), the object that decides the class")
    if not attribution.spatial:
        raise UnsupportedMethodError(
            f"{attribution.method} gives one value per channel; it cannot be scored on an image"
        )
    chosen = get_protocol(protocol)
    with torch.no_grad(), left_as_found(model.model):
        clean = model.forward(images)
        fixed = TargetScore.of(model, clean, _target_of(attribution, target))
    scene = Scene(images, fixed, masks)
    found = score_maps(model, scene, {attribution.method: attribution.values}, wanted, chosen)
    content = images.cpu().contiguous().numpy().tobytes() + attribution.values.cpu().contiguous().numpy().tobytes()
    key = cell_key(
        {
            "kind": "single",
            "weights": model.weights_hash,
            "preprocessing": vars(model.source.preprocessing),
            "method": attribution.method,
            "options": dict(attribution.options),
            "metrics": [[metric.name, metric.version] for metric in wanted],
            "protocol": chosen.describe(),
            "target": _target_key(model, fixed, clean),
            "images_and_maps": hashlib.sha256(content).hexdigest(),
        }
    )
    names = [str(i) for i in range(len(images))]
    return [
        record
        for scored in found[attribution.method]
        for record in as_records(scored, names, attribution, protocol, key)
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


def fixed_target(model: ModelAdapter, images: Tensor, target: Target) -> TargetScore:
    """The target on clean images, from one forward pass."""
    return TargetScore.of(model, model.forward(images), target)
