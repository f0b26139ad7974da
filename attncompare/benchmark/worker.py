"""The work of one benchmark process: explain and score the missing cells of a chunk, and keep count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from attncompare.benchmark.chunk import ChunkScorer, Part
from attncompare.benchmark.layer_maps import LayerArchive, keep_layers
from attncompare.benchmark.plan import Cell, Chunk, ModelPlan
from attncompare.benchmark.records import Record
from attncompare.benchmark.saved import MapArchive, save_image
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import ResultStore
from attncompare.data.images import fit_image
from attncompare.errors import Failure
from attncompare.models.adapter import ModelAdapter
from attncompare.progress import Progress, Tick


@dataclass
class Tally:
    """What a run has come to so far: the cells of its plan, and how many of them were computed or there already.

    failed: records, of those computed. deviation: what tuning and backend change in a model's scores. dtype_deviation: what
    a dtype other than float32 does, as `ChunkScorer` has it. deaths: why worker processes
    ended before their time.
    """

    keys: list[str] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    failed: int = 0
    deviation: dict[str, float] = field(default_factory=dict)
    dtype_deviation: dict[str, dict[str, float]] = field(default_factory=dict)
    deaths: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count what another process did."""
        self.keys += other.keys
        self.computed += other.computed
        self.reused += other.reused
        self.failed += other.failed
        self.deviation.update(other.deviation)
        self.dtype_deviation.update(other.dtype_deviation)


class Worker:
    """Runs chunks of one spec and keeps count."""

    def __init__(self, spec: BenchmarkSpec, store: ResultStore, progress: Progress, total: int) -> None:
        self.spec, self.store, self.progress, self.total = spec, store, progress, total
        self.scorer = ChunkScorer(spec, self.tick)
        self.tally = self._new_tally()
        self.plans: dict[str, ModelPlan] = {}
        self.done = 0

    def restart(self) -> None:
        """Count from nothing again; what was told of the models stays."""
        self.tally, self.done = self._new_tally(), 0

    def _new_tally(self) -> Tally:
        return Tally(deviation=self.scorer.deviation, dtype_deviation=self.scorer.dtype_deviation)

    def tick(self, steps: int, what: str) -> None:
        """Report progress."""
        self.done += steps
        self.progress(Tick(min(self.done, self.total), self.total, what))

    def finish(
        self, key: str, records: Sequence[Record], batch_size: int | None = None, scored_by: str | None = None
    ) -> None:
        """Write a cell. batch_size: of the images that were worked on together, where it is not the spec's.

        scored_by: see ChunkScorer.
        """
        columns = {
            "device": self.spec.device,
            "threads": torch.get_num_threads(),
            "batch_size": batch_size or self.spec.batch_size,
            "scored_by": scored_by,
        }
        self.store.write(key, records, columns)
        self.tally.computed += 1
        self.tally.failed += sum(record.status == "failed" for record in records)

    def run_chunk(
        self,
        model: ModelAdapter,
        chunk: Chunk,
        lost: Mapping[str, Failure] = MappingProxyType({}),
        pieces: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Compute the missing cells of one model on one chunk.

        lost: the images that must not be tried, with the reason. pieces: the names of the others, as they are to be worked
        on together; all at once unless told otherwise.
        """
        cells = self._plan(model).cells(chunk)
        work = self._begin(model, cells, len(chunk.samples) + len(chunk.unreadable))
        if self.spec.save_maps:
            self._save_pictures(model, chunk)
            kept = [sample for sample in chunk.samples if sample.name not in lost]
            keep_layers(LayerArchive(self.store.folder), cells[0].key, model, kept, self.spec.batch_size)
        if not work:
            return
        whole = [[sample.name for sample in chunk.samples if sample.name not in lost]]
        result = Part({cell.key: [] for cell in work})
        for name, failure in (*chunk.unreadable.items(), *lost.items()):
            for cell in work:
                result.rows[cell.key] += self.scorer.without_value(model, cell, [name], failure)
        for piece in filter(None, whole if pieces is None else pieces):
            result.add(self.scorer.compute(model, chunk.only(piece), work))
        for cell in work:
            if self.spec.save_maps:
                maps, archive = result.maps.get(cell.key, {}), MapArchive(self.store.folder)
                archive.write(cell.key, model.name, cell.method.name, maps, result.classes)
            self.finish(cell.key, result.rows[cell.key], scored_by=self.scorer.scored_by(model))

    def probe(self, model: ModelAdapter, chunk: Chunk, names: Sequence[str]) -> None:
        """Compute the missing cells of a chunk on some of its images and keep nothing, to see whether that can be lived."""
        work = [cell for cell in self._missing(self._plan(model).cells(chunk)) if not cell.unsupported]
        if work:
            self.scorer.compute(model, chunk.only(names), work)

    def _begin(self, model: ModelAdapter, cells: Sequence[Cell], size: int) -> list[Cell]:
        """Count what is there and finish what is refused; the cells that are left."""
        self.tally.keys += [cell.key for cell in cells]
        missing = self._missing(cells)
        self.tally.reused += len(cells) - len(missing)
        self.tick((len(cells) - len(missing)) * size, model.name)
        for cell in [cell for cell in missing if cell.unsupported]:
            refused = Failure("unsupported", cell.unsupported)
            self.finish(cell.key, self.scorer.without_value(model, cell, [""], refused))
            self.tick(size, model.name)
        return [cell for cell in missing if not cell.unsupported]

    def _save_pictures(self, model: ModelAdapter, chunk: Chunk) -> None:
        """Keep the pictures that the model saw, also of finished cells: those of another run may lie in their place."""
        for sample in chunk.samples:
            save_image(self.store.folder, model.name, sample.name, fit_image(sample.image, model.source.preprocessing))

    def _plan(self, model: ModelAdapter) -> ModelPlan:
        return self.plans.setdefault(model.name, ModelPlan(self.spec, model))

    def _missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells to compute: those without good records, and where maps are kept those without good maps."""
        archive, held = MapArchive(self.store.folder), self.store.held([cell.key for cell in cells])
        mapped = {c.key for c in cells if not self.spec.save_maps or c.unsupported or archive.holds(c.key)}
        return [cell for cell in cells if cell.key not in held & mapped]
