"""The work of one benchmark process: explain and score the missing cells of a chunk, and keep count."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.evidence import Scene, target_scorer
from attncompare.benchmark.explained import explain_cells
from attncompare.benchmark.layer_maps import LayerArchive, keep_layers
from attncompare.benchmark.plan import Cell, Chunk, ModelPlan, chosen_metrics
from attncompare.benchmark.records import Record, Status
from attncompare.benchmark.saved import MapArchive, save_image
from attncompare.benchmark.scoring import again_of, as_records, score_maps
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import ResultStore
from attncompare.capture.capture import left_as_found
from attncompare.capture.targets import TEXT, Target, TargetScore
from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import AttnCompareError, UnsupportedMethodError, reason_of
from attncompare.maps import AttributionMap
from attncompare.metrics.protocols import get_protocol
from attncompare.tuning import check_deviation

CLEAN_SCORE = "target_score"
"""Of every clean image: the target's probability; for embeddings the cosine to itself (1) or to the text."""


@dataclass(frozen=True)
class Tick:
    """Progress: how many of `total` steps are done, and what is running."""

    done: int
    total: int
    what: str


Progress = Callable[[Tick], None]


@dataclass
class Tally:
    """What a run has come to so far: the cells of its plan, and how many of them were computed or there already.

    failed: records, of those computed. deviation: what tuning changes in a model's scores.
    """

    keys: list[str] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    failed: int = 0
    deviation: dict[str, float] = field(default_factory=dict)


class Worker:
    """Runs chunks of one spec and keeps count."""

    def __init__(self, spec: BenchmarkSpec, store: ResultStore, progress: Progress, total: int) -> None:
        self.spec, self.store, self.progress, self.total = spec, store, progress, total
        self.protocol = get_protocol(spec.protocol)
        self.metrics = {metric.name: metric for metric in chosen_metrics(spec)}
        self.tally = Tally()
        self.plans: dict[str, ModelPlan] = {}
        self.done = 0

    def tick(self, steps: int, what: str) -> None:
        """Report progress."""
        self.done += steps
        self.progress(Tick(min(self.done, self.total), self.total, what))

    def finish(self, key: str, records: Sequence[Record]) -> None:
        """Write a cell."""
        columns = {
            "device": self.spec.device,
            "threads": torch.get_num_threads(),
            "batch_size": self.spec.batch_size,
        }
        self.store.write(key, records, columns)
        self.tally.computed += 1
        self.tally.failed += sum(record.status == "failed" for record in records)

    def run_chunk(self, model: ModelAdapter, chunk: Chunk) -> None:
        """Compute the missing cells of one model on one chunk."""
        cells = self._plan(model).cells(chunk)
        self.tally.keys += [cell.key for cell in cells]
        if self.spec.save_maps:
            self._save_pictures(model, chunk)
            keep_layers(LayerArchive(self.store.folder), cells[0].key, model, chunk.samples, self.spec.batch_size)
        missing = self._missing(cells)
        size = len(chunk.samples) + len(chunk.unreadable)
        self.tally.reused += len(cells) - len(missing)
        self.tick((len(cells) - len(missing)) * size, model.name)
        for cell in [cell for cell in missing if cell.unsupported]:
            self.finish(cell.key, self._rows(model, cell, [""], "unsupported", cell.unsupported))
            self.tick(size, model.name)
        work = [cell for cell in missing if not cell.unsupported]
        if not work:
            return
        rows: dict[str, list[Record]] = {cell.key: [] for cell in work}
        for name, reason in chunk.unreadable.items():
            for cell in work:
                rows[cell.key] += self._rows(model, cell, [name], "failed", reason)
        if chunk.samples:
            for key, records in self._explain_and_score(model, chunk, work).items():
                rows[key] += records
        for cell in work:
            self.finish(cell.key, rows[cell.key])

    def _plan(self, model: ModelAdapter) -> ModelPlan:
        return self.plans.setdefault(model.name, ModelPlan(self.spec, model))

    def _missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells to compute: those without good records, and where maps are kept those without good maps."""
        archive, held = MapArchive(self.store.folder), self.store.held([cell.key for cell in cells])
        mapped = {c.key for c in cells if not self.spec.save_maps or c.unsupported or archive.holds(c.key)}
        return [cell for cell in cells if cell.key not in held & mapped]

    def _rows(self, model: ModelAdapter, cell: Cell, names: Sequence[str], status: Status, detail: str) -> list[Record]:
        """The same status for every measure of some images."""
        return [
            Record(
                model.name, cell.method.name, name, -1, measure, self._protocol(measure), None, status, detail, cell.key
            )
            for measure in (CLEAN_SCORE, *self.spec.metrics)
            for name in names
        ]

    def _protocol(self, measure: str) -> str:
        metric = self.metrics.get(measure)
        return "" if metric is None else self.protocol.name if metric.curves else metric.setting

    def _explain_and_score(self, model: ModelAdapter, chunk: Chunk, work: Sequence[Cell]) -> dict[str, list[Record]]:
        how, names = model.source.preprocessing, [sample.name for sample in chunk.samples]
        pictures = [fit_image(sample.image, how) for sample in chunk.samples]
        images = torch.stack([to_tensor(picture) for picture in pictures]).to(model.device)
        with torch.no_grad(), left_as_found(model.model):
            outputs = model.forward(images)
            target = TargetScore.of(model, outputs, self._target(model, chunk))
            clean = target.probability(outputs, torch.arange(len(images), device=images.device)).cpu()
            if model.name not in self.tally.deviation:
                everything = torch.arange(len(images), device=images.device)
                score = target_scorer(model, target, everything)
                self.tally.deviation[model.name] = check_deviation(lambda batch: score(batch, everything), images)
        scene = Scene(images, target, _masks(chunk, model))
        fixed: Target = "embedding" if model.embedding else target.target
        explained = explain_cells(model, work, images, self.spec.target if target.prompts else fixed, self.tick)
        rows = {cell.key: self._clean_rows(model, cell, names, target, clean, explained[cell.key]) for cell in work}
        if self.spec.metrics:
            for key, records in self._score(model, work, names, scene, explained).items():
                rows[key] += records
        if self.spec.save_maps:
            classes = ["" if model.embedding else model.class_name(int(t)) for t in target.target]
            classes = [prompt.removeprefix(TEXT) for prompt in target.prompts] or classes
            self._save(model, work, dict(zip(names, pictures, strict=True)), explained, classes)
        return rows

    def _clean_rows(
        self,
        model: ModelAdapter,
        cell: Cell,
        names: Sequence[str],
        target: TargetScore,
        clean: Tensor,
        found: Sequence[Tensor | str],
    ) -> list[Record]:
        """The clean score of every explained image, and for the others the reason under every measure."""
        rows: list[Record] = []
        for i, value in enumerate(found):
            if isinstance(value, str):
                status: Status = "unsupported" if value.startswith(UnsupportedMethodError.__name__) else "failed"
                rows += self._rows(model, cell, [names[i]], status, value)
            else:
                explained, score = int(target.target[i]), float(clean[i])
                method = cell.method.name
                rows.append(Record(model.name, method, names[i], explained, CLEAN_SCORE, "", score, "ok", "", cell.key))
        return rows

    def _save_pictures(self, model: ModelAdapter, chunk: Chunk) -> None:
        """Keep the pictures that the model saw, also of finished cells: those of another run may lie in their place."""
        for sample in chunk.samples:
            picture = fit_image(sample.image, model.source.preprocessing)
            save_image(self.store.folder, model.name, sample.name, picture)

    def _save(
        self,
        model: ModelAdapter,
        work: Sequence[Cell],
        pictures: Mapping[str, NDArray[np.uint8]],
        explained: Mapping[str, Sequence[Tensor | str]],
        classes: Sequence[str],
    ) -> None:
        """Keep the maps."""
        named = dict(zip(pictures, classes, strict=True))
        for cell in work:
            kept = {n: v for n, v in zip(pictures, explained[cell.key], strict=True) if isinstance(v, Tensor)}
            MapArchive(self.store.folder).write(cell.key, model.name, cell.method.name, kept, named)

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
        explained: Mapping[str, Sequence[Tensor | str]],
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
                    refused = self._rows(model, cell, [""], "unsupported", reason)
                    rows[cell.key] += [row for row in refused if row.measure == metric.name]
            if good and cell.method.space == "image":
                groups.setdefault(good, []).append(cell)
        for good, cells in groups.items():
            part, kept = scene.subset(good), [names[i] for i in good]
            maps = {c.key: torch.stack([v for v in explained[c.key] if isinstance(v, Tensor)]) for c in cells}
            again = {c.key: again_of(model, c.method.name, c.options) for c in cells}
            explainers = {key: one for key, one in again.items() if one is not None}
            sizes = {"batch_size": self.spec.batch_size, "seed": self.spec.seed}
            try:
                scored = score_maps(model, part, maps, wanted, self.protocol, explainers=explainers, **sizes)
            except (AttnCompareError, RuntimeError, MemoryError) as error:
                for cell in cells:
                    failed = self._rows(model, cell, kept, "failed", reason_of(error))
                    rows[cell.key] += [row for row in failed if row.measure != CLEAN_SCORE]
                continue
            for cell in cells:
                made = AttributionMap(maps[cell.key], part.targets, model=model.name, method=cell.method.name)
                for one in scored[cell.key]:
                    rows[cell.key] += as_records(one, kept, made, self.protocol.name, cell.key)
        return rows


def _masks(chunk: Chunk, model: ModelAdapter) -> Tensor | None:
    """(B,H,W) bool as the model sees them, or None when an image has none."""
    found = []
    for sample in chunk.samples:
        if sample.mask is None:
            return None
        fitted = fit_image(sample.mask.astype(np.uint8) * 255, model.source.preprocessing, mask=True)
        found.append(torch.from_numpy(fitted > 127))
    return torch.stack(found)
