"""The images of a chunk become records and maps: explain, score, and say why where there is no value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attncompare.benchmark.evidence import Passes, Scene, scoring_deviation, with_smaller_batches
from attncompare.benchmark.explained import Explained, explain_cells, maps_of
from attncompare.benchmark.forwarding import way_in_use
from attncompare.benchmark.plan import Cell, Chunk, chosen_metrics
from attncompare.benchmark.records import Record
from attncompare.benchmark.scoring import Scored, again_of, as_records, score_maps
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.capture.target import TEXT, Target, TargetScore
from attncompare.data.images import fit_image, fit_mask, to_tensor
from attncompare.errors import AttnCompareError, CaptureError, Failure
from attncompare.maps import AttributionMap
from attncompare.metrics.user_protocols import get_protocol
from attncompare.models.adapter import ModelAdapter
from attncompare.state import preserve_state

CHECKED = 2
"""Images of each model that are also scored in float32 where the spec asks for less."""
CLEAN_SCORE = "target_score"
"""Of every clean image: the target's probability; for embeddings the cosine to itself (1) or to the text."""


@dataclass
class Part:
    """Records, and maps where they are kept, of some images of a chunk; by the key of their cell.

    classes: image -> name of the class explained.
    """

    rows: dict[str, list[Record]]
    maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Part") -> None:
        """Join with other images, or other records; what holds for a method as a whole is kept once."""
        for key, rows in other.rows.items():
            self.rows[key] += [row for row in rows if row.image or row not in self.rows[key]]
        for key, maps in other.maps.items():
            self.maps.setdefault(key, {}).update(maps)
        self.classes.update(other.classes)


class ChunkScorer:
    """Explains and scores images under a spec.

    deviation: what tuning and backend change in the scores of each model seen. dtype_deviation: of each model, the largest
    change that the spec's dtype makes to the values of each curve's metric on its first images, all maps.
    """

    def __init__(self, spec: BenchmarkSpec, tick: Callable[[int, str], None]) -> None:
        self.spec, self.tick = spec, tick
        self.protocol = get_protocol(spec.protocol)
        self.metrics = {metric.name: metric for metric in chosen_metrics(spec)}
        self.passes = Passes(spec.batch_size, spec.seed, spec.dtype, spec.backend)
        self.deviation: dict[str, float] = {}
        self.dtype_deviation: dict[str, dict[str, float]] = {}

    def without_value(self, model: ModelAdapter, cell: Cell, names: Sequence[str], failure: Failure) -> list[Record]:
        """The same reason for every measure of some images."""
        return [
            Record.failed((model.name, cell.method.name, name, -1, measure, self._protocol(measure)), failure, cell.key)
            for measure in (CLEAN_SCORE, *self.spec.metrics)
            for name in names
        ]

    def scored_by(self, model: ModelAdapter) -> str | None:
        """What forwards a model's altered images: "openvino", or "torch" and which way; None if none were yet.

        Behind it bf16 if that was asked for, and a precision of matrix products that the caller has set.
        """
        if self.spec.backend != "torch":
            return self.spec.backend
        way = way_in_use(model)
        if way is None:
            return None
        bf16, precision = self.spec.dtype == "bf16", torch.get_float32_matmul_precision()
        return f"torch {way}" + " bf16" * bf16 + f" {precision}" * (precision != "highest")

    def _protocol(self, measure: str) -> str:
        metric = self.metrics.get(measure)
        return "" if metric is None else self.protocol.name if metric.curves else metric.setting

    def compute(self, model: ModelAdapter, chunk: Chunk, work: Sequence[Cell]) -> Part:
        """Explain and score some images; what a model or a method does wrong becomes records with the reason.

        A fault of the model itself is halved down to the images that are at fault.
        """
        names = [sample.name for sample in chunk.samples]
        try:
            return self._explain_and_score(model, chunk, names, work)
        except (AttnCompareError, OSError):  # a wrong spec, a full disk: not of these images
            raise
        except Exception as error:
            if len(names) == 1:
                return Part({c.key: self.without_value(model, c, names, Failure.of(error)) for c in work})
        part = self.compute(model, chunk.only(names[: len(names) // 2]), work)
        part.add(self.compute(model, chunk.only(names[len(names) // 2 :]), work))
        return part

    def _explain_and_score(self, model: ModelAdapter, chunk: Chunk, names: Sequence[str], work: Sequence[Cell]) -> Part:
        how = model.source.preprocessing
        images = torch.stack([to_tensor(fit_image(one.image, how)) for one in chunk.samples]).to(model.device)
        everything = torch.arange(len(images), device=images.device)
        with torch.no_grad(), preserve_state(model.module):
            outputs = with_smaller_batches(
                lambda size: torch.cat([model.forward(part) for part in torch.split(images, size)]), len(images)
            )
            target = TargetScore.of(model, outputs, self._target(model, chunk))
            clean = target.probability(outputs, everything).cpu()
            if model.name not in self.deviation:
                self.deviation[model.name] = scoring_deviation(model, target, images, self.passes)
        scene = Scene(images, target, _masks(chunk, model))
        fixed: Target = "embedding" if model.embedding else target.target
        explained = explain_cells(model, work, images, self.spec.target if target.prompts else fixed, self.tick)
        nothing = Failure.of(CaptureError(f"{model.name} returned non-finite outputs for this image"))
        for i in (~torch.isfinite(outputs).all(dim=1)).nonzero()[:, 0].tolist():
            for values in explained.values():  # also of methods that never look at the model
                values[i] = nothing
        part = Part({c.key: self._clean_rows(model, c, names, target, clean, explained[c.key]) for c in work})
        maps = maps_of(explained)
        if self.spec.metrics:
            part.add(Part(self._score(model, work, names, scene, maps)))
        if self.spec.save_maps:
            classes = ["" if model.embedding else model.class_name(int(t)) for t in target.target]
            classes = [prompt.removeprefix(TEXT) for prompt in target.prompts] or classes
            part.classes.update(zip(names, classes, strict=True))
            for key, found in maps.items():
                part.maps[key] = {n: v for n, v in zip(names, found, strict=True) if isinstance(v, Tensor)}
        return part

    def _clean_rows(
        self,
        model: ModelAdapter,
        cell: Cell,
        names: Sequence[str],
        target: TargetScore,
        clean: Tensor,
        found: Sequence[Explained | Failure],
    ) -> list[Record]:
        """The clean score of every explained image and what its method reports; for the others the reason."""
        rows: list[Record] = []
        for i, one in enumerate(found):
            if isinstance(one, Failure):
                rows += self.without_value(model, cell, [names[i]], one)
                continue
            owner = (model.name, cell.method.name, names[i], int(target.target[i]))
            numbers = {CLEAN_SCORE: float(clean[i]), **one.detail}
            rows += [Record(*owner, measure, "", value, "ok", "", cell.key) for measure, value in numbers.items()]
        return rows

    def _target(self, model: ModelAdapter, chunk: Chunk) -> Target:
        if self.spec.target == "argmax":
            return "embedding" if model.embedding else None
        if self.spec.target != "label":
            return self.spec.target
        return [sample.label for sample in chunk.samples if sample.label is not None]

    def _score(
        self,
        model: ModelAdapter,
        work: Sequence[Cell],
        names: Sequence[str],
        scene: Scene,
        explained: Mapping[str, Sequence[Tensor | Failure]],
    ) -> dict[str, list[Record]]:
        """Records of all metrics; cells whose maps cover the same images share one stream of batches."""
        rows: dict[str, list[Record]] = {cell.key: [] for cell in work}
        groups: dict[tuple[int, ...], list[Cell]] = {}
        wanted = list(self.metrics.values())
        for cell in work:
            good = tuple(i for i, value in enumerate(explained[cell.key]) if isinstance(value, Tensor))
            for metric in wanted:
                reason = ""
                if cell.method.space != "image":
                    reason = "one value per channel; it cannot be scored on the image"
                elif metric.needs_mask and scene.masks is None:
                    reason = f"the data {self.spec.data!r} has no object masks"
                if reason:
                    refused = self.without_value(model, cell, [""], Failure("unsupported", reason))
                    rows[cell.key] += [row for row in refused if row.measure == metric.name]
            if good and cell.method.space == "image":
                groups.setdefault(good, []).append(cell)
        for good, cells in groups.items():
            part, kept = scene.subset(good), [names[i] for i in good]
            maps = {c.key: torch.stack([v for v in explained[c.key] if isinstance(v, Tensor)]) for c in cells}
            again = {c.key: again_of(model, c.method.name, c.options) for c in cells}
            explainers = {key: one for key, one in again.items() if one is not None}
            try:
                scored = score_maps(model, part, maps, wanted, self.protocol, explainers=explainers, passes=self.passes)
                if self.spec.dtype != "float32" and model.name not in self.dtype_deviation:
                    few = part.subset(range(min(CHECKED, len(kept))))
                    self.dtype_deviation[model.name] = self._dtype_deviation(model, few, maps, scored)
            except (AttnCompareError, RuntimeError, MemoryError) as error:
                for cell in cells:
                    failed = self.without_value(model, cell, kept, Failure.of(error))
                    rows[cell.key] += [row for row in failed if row.measure != CLEAN_SCORE]
                continue
            for cell in cells:
                made = AttributionMap(maps[cell.key], part.targets, model=model.name, method=cell.method.name)
                for one in scored[cell.key]:
                    rows[cell.key] += as_records(one, kept, made, self.protocol.name, cell.key)
        return rows

    def _dtype_deviation(
        self, model: ModelAdapter, few: Scene, maps: Mapping[str, Tensor], scored: Mapping[str, list[Scored]]
    ) -> dict[str, float]:
        """Metric of a curve -> the largest difference of a value from float32's on a few images."""
        count = len(few.images)
        curved = [metric for metric in self.metrics.values() if metric.curves]
        passes = replace(self.passes, dtype="float32")
        exact = score_maps(
            model, few, {key: values[:count] for key, values in maps.items()}, curved, self.protocol, passes=passes
        )
        found = {(key, one.metric.name): one.values[:count] for key, several in scored.items() for one in several}
        largest: dict[str, float] = {}
        for key, several in exact.items():
            for one in several:
                apart = (one.values - found[key, one.metric.name]).abs()
                worst = float(apart.nan_to_num(0.0).max())  # undefined values have no difference
                largest[one.metric.name] = max(worst, largest.get(one.metric.name, 0.0))
        return largest


def _masks(chunk: Chunk, model: ModelAdapter) -> Tensor | None:
    """(B,H,W) bool as the model sees them, or None when an image has none."""
    found = []
    for sample in chunk.samples:
        if sample.mask is None:
            return None
        found.append(fit_mask(sample.mask, model.source.preprocessing))
    return torch.stack(found)
