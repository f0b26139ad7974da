"""Run a benchmark: what is missing, nothing twice, and every fault a record."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.plan import Cell, Chunk, check_names, chosen_methods, plan_chunk, read_chunk, support
from attncompare.benchmark.records import TIMING_MEASURES, Record, cell_key
from attncompare.benchmark.saved import MapArchive, save_image
from attncompare.benchmark.scoring import as_records, fixed_target, is_degenerate, score_maps
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.statistics import summarise
from attncompare.benchmark.store import ResultStore
from attncompare.benchmark.timing import device_clock, time_interleaved
from attncompare.capture.capture import left_as_found
from attncompare.capture.targets import Target, TargetScore
from attncompare.data.datasets import open_dataset
from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import SpecError
from attncompare.explainer import explain_together
from attncompare.loading import load_model
from attncompare.metrics._base import metrics
from attncompare.metrics.protocols import get_protocol

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "captum", "numpy", "scipy", "pyarrow")
CLEAN_SCORE = "target_score"
"""Recorded for every image: the target's probability on the clean image (1, the cosine to itself, for embeddings)."""


@dataclass(frozen=True)
class Tick:
    """Progress: how many of `total` steps are done, and what is running."""

    done: int
    total: int
    what: str


Progress = Callable[[Tick], None]


@dataclass(frozen=True)
class Run:
    """A finished (or partly finished) benchmark on disk.

    computed, reused: cells. failed: failed records among those computed now.
    """

    folder: Path
    computed: int = 0
    reused: int = 0
    failed: int = 0

    def records(self) -> pd.DataFrame:
        """One row per value; see the README for the columns."""
        return ResultStore(self.folder).read(self.manifest().get("keys"))

    def summary(self) -> pd.DataFrame:
        """One row per model, method and measure: mean with its 95 % interval, n, failures."""
        return summarise(self.records())

    def manifest(self) -> dict[str, Any]:
        """The content of run.json."""
        return ResultStore(self.folder).manifest()

    def report(self) -> Path:
        """Write report.html and return its path."""
        from attncompare.reporting.html import write_report

        return write_report(self.folder)


def environment(device: str) -> dict[str, Any]:
    """What else decides a number: versions, machine, threads."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else ""
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()} {platform.processor()}".strip(),
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Run with a fixed number of threads; the previous number is restored."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_benchmark(spec: BenchmarkSpec, out: str | Path, *, progress: Progress = lambda tick: None) -> Run:
    """Run a spec into a folder; cells that are there already are not computed again.

    Unknown names and options raise before anything runs. A method that a model cannot supply, an unreadable image and a
    method that raises become records with their reason, and the run goes on.
    """
    check_names(spec)
    store = ResultStore(Path(out))
    dataset = open_dataset(spec.data, spec.limit)
    with thread_count(spec.threads):
        models = [load_model(name, device=spec.device) for name in spec.models]
        manifest: dict[str, Any] = {
            "spec": spec.model_dump(mode="json"),
            "environment": environment(spec.device),
            "models": {m.name: m.describe() | {"weights_hash": m.weights_hash} for m in models},
            "images": len(dataset.names),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None,
            "keys": [],
        }
        store.write_manifest(manifest)
        worker = _Worker(spec, store, progress, _total(spec, len(dataset.names)))
        for start in range(0, len(dataset.names) if not spec.timing_only else 0, spec.chunk_size):
            chunk = read_chunk(dataset, dataset.names[start : start + spec.chunk_size])
            for model in models:
                worker.run_chunk(model, chunk)
        if spec.timing or spec.timing_only:
            sample = read_chunk(dataset, dataset.names[: spec.timing_batch])
            for model in models:
                worker.run_timing(model, sample)
    manifest |= {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "keys": worker.keys}
    manifest |= {"computed": worker.computed, "reused": worker.reused}
    store.write_manifest(manifest)
    return Run(store.folder, worker.computed, worker.reused, worker.failed)


def _total(spec: BenchmarkSpec, images: int) -> int:
    """Progress steps of a run: one per method and image, and one per timed repeat."""
    count = len(chosen_methods(spec))
    scoring = 0 if spec.timing_only else images * count
    timing = (spec.repeats + 1) * (count + 1) if spec.timing or spec.timing_only else 0
    return len(spec.models) * (scoring + timing)


class _Worker:
    """Runs chunks of one spec and keeps count."""

    def __init__(self, spec: BenchmarkSpec, store: ResultStore, progress: Progress, total: int) -> None:
        self.spec, self.store, self.progress, self.total = spec, store, progress, total
        self.keys: list[str] = []
        self.done = self.computed = self.reused = self.failed = 0

    def tick(self, steps: int, what: str) -> None:
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
        self.computed += 1
        self.failed += sum(record.status == "failed" for record in records)

    def run_chunk(self, model: ModelAdapter, chunk: Chunk) -> None:
        """Compute the missing cells of one model on one chunk."""
        cells = plan_chunk(self.spec, model, chunk)
        self.keys += [cell.key for cell in cells]
        missing = [cell for cell in cells if not self._is_done(cell, model)]
        size = len(chunk.samples) + len(chunk.unreadable)
        self.reused += len(cells) - len(missing)
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

    def _is_done(self, cell: Cell, model: ModelAdapter) -> bool:
        archive = MapArchive(self.store.folder)
        mapped = not self.spec.save_maps or bool(cell.unsupported) or archive.path(cell.key).exists()
        return self.store.holds(cell.key) and mapped

    def _rows(self, model: ModelAdapter, cell: Cell, names: Sequence[str], status: str, detail: str) -> list[Record]:
        """The same status for every measure of some images."""
        return [
            Record(model.name, cell.method.name, name, -1, measure, self._protocol(measure), None, status, detail, cell.key)  # type: ignore[arg-type]
            for measure in (CLEAN_SCORE, *self.spec.metrics)
            for name in names
        ]

    def _protocol(self, measure: str) -> str:
        return self.spec.protocol if measure != CLEAN_SCORE and metrics.get(measure).curve else ""

    def _explain_and_score(self, model: ModelAdapter, chunk: Chunk, work: Sequence[Cell]) -> dict[str, list[Record]]:
        how, names = model.source.preprocessing, [sample.name for sample in chunk.samples]
        pictures = [fit_image(sample.image, how) for sample in chunk.samples]
        images = torch.stack([to_tensor(picture) for picture in pictures]).to(model.device)
        masks = _masks(chunk, model)
        with torch.no_grad(), left_as_found(model.model):
            outputs = model.forward(images)
            target = TargetScore.of(model, outputs, self._target(model, chunk))
            clean = target.probability(outputs, torch.arange(len(images), device=images.device)).cpu()
        explained = _explain(model, work, images, "embedding" if model.embedding else target.target, self.tick)
        rows = {cell.key: self._score(model, cell, names, images, target, masks, clean, explained[cell.key]) for cell in work}
        if self.spec.save_maps:
            for picture, name in zip(pictures, names, strict=True):
                save_image(self.store.folder, model.name, name, picture)
            for cell in work:
                kept = {n: v for n, v in zip(names, explained[cell.key], strict=True) if isinstance(v, Tensor)}
                classes = ["" if model.embedding else model.class_name(int(t)) for t in target.target]
                MapArchive(self.store.folder).write(
                    cell.key, model.name, cell.method.name, kept, dict(zip(names, classes, strict=True))
                )
        return rows

    def _target(self, model: ModelAdapter, chunk: Chunk) -> Target:
        if model.embedding:
            return "embedding"
        if self.spec.target == "argmax":
            return None
        labels = [sample.label for sample in chunk.samples if sample.label is not None]
        if len(labels) != len(chunk.samples):
            raise SpecError(f"target 'label': the data {self.spec.data!r} has no labels; use target 'argmax'")
        return labels

    def _score(
        self,
        model: ModelAdapter,
        cell: Cell,
        names: Sequence[str],
        images: Tensor,
        target: TargetScore,
        masks: Tensor | None,
        clean: Tensor,
        found: Sequence[Tensor | str],
    ) -> list[Record]:
        """All records of one cell."""
        rows: list[Record] = []
        good = [i for i, value in enumerate(found) if isinstance(value, Tensor)]
        for i, value in enumerate(found):
            if isinstance(value, str):
                rows += self._rows(model, cell, [names[i]], "failed", value)
        rows += [
            Record(model.name, cell.method.name, names[i], int(target.target[i]), CLEAN_SCORE, "", float(clean[i]), "ok", "", cell.key)
            for i in good
        ]
        maps = [value for value in found if isinstance(value, Tensor)]
        if not good or not self.spec.metrics:
            return rows
        wanted = [metrics.get(name) for name in self.spec.metrics]
        for metric in wanted:
            reason = ""
            if maps[0].ndim != 2:
                reason = "one value per channel; it cannot be scored on the image"
            elif metric.needs_mask and masks is None:
                reason = f"the data {self.spec.data!r} has no object masks"
            if reason:
                rows += [row for row in self._rows(model, cell, [""], "unsupported", reason) if row.measure == metric.name]
        if maps[0].ndim != 2:
            return rows
        index, values = torch.tensor(good), torch.stack(maps)
        try:
            scored = score_maps(
                model,
                images[index],
                target,
                {cell.method.name: values},
                wanted,
                get_protocol(self.spec.protocol),
                index=index.to(images.device),
                masks=None if masks is None else masks[index],
                batch_size=self.spec.batch_size,
                seed=self.spec.seed,
            )
        except RuntimeError as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            failed = self._rows(model, cell, [names[i] for i in good], "failed", reason)
            return rows + [row for row in failed if row.measure != CLEAN_SCORE]
        for one in scored[cell.method.name]:
            kept = [names[i] for i in good]
            flat = is_degenerate(values)
            rows += as_records(one, model.name, cell.method.name, kept, target.target[index], self.spec.protocol, cell.key, flat)
        self.tick(0, f"{model.name} {cell.method.name}")
        return rows

    def run_timing(self, model: ModelAdapter, sample: Chunk) -> None:
        """Time every method that the model supports, and the plain forward, in interleaved rounds."""
        spec = self.spec
        jobs = [(m, m.resolve(spec.options.get(m.name, {}))) for m in chosen_methods(spec)]
        jobs = [(method, options) for method, options in jobs if not support(model, method, options)]
        steps = (spec.repeats + 1) * (len(chosen_methods(spec)) + 1)
        before = self.done
        keys = {
            method.name: cell_key(
                {
                    "kind": "timing",
                    "weights": model.weights_hash,
                    "model": model.name,
                    "method": method.name,
                    "version": method.version,
                    "options": options,
                    "among": [m.name for m, _ in jobs],
                    "batch": spec.timing_batch,
                    "repeats": [spec.repeats, spec.timing_seconds],
                    "host": platform.node(),
                    "device": spec.device,
                    "threads": torch.get_num_threads(),
                }
            )
            for method, options in jobs
        }
        self.keys += list(keys.values())
        if all(self.store.holds(key) for key in keys.values()):
            self.reused += len(keys)
            self.tick(steps, model.name)
            return
        images = torch.rand(spec.timing_batch, 3, *model.size, generator=torch.Generator().manual_seed(spec.seed))
        for i, one in enumerate(sample.samples):
            images[i] = to_tensor(fit_image(one.image, model.source.preprocessing))
        images = images.to(model.device)
        with torch.no_grad(), left_as_found(model.model):
            target: Target = "embedding" if model.embedding else fixed_target(model, images, None).target

        def plain() -> object:
            with torch.no_grad():
                return model.forward(images)

        runs: dict[str, Callable[[], object]] = {"": plain}
        passes: dict[str, tuple[float, float]] = {}
        for method, options in jobs:

            def run(name: str = method.name, options: Mapping[str, object] = options) -> object:
                found = explain_together(model, [(name, options)], images, target)[name]
                passes[name] = (found.passes_forward, found.passes_backward)
                return found

            try:
                run()
            except Exception as error:  # a method that raises is a record, as in scoring
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                key = keys[method.name]
                self.finish(key, [Record(model.name, method.name, "", -1, m, "", None, "failed", reason, key) for m in TIMING_MEASURES])
                continue
            runs[method.name] = run
        taken = time_interleaved(
            runs,
            device_clock(model.device),
            repeats=spec.repeats,
            seconds=spec.timing_seconds,
            tick=lambda: self.tick(1, f"timing {model.name}"),
        )
        for method in (method for method, _ in jobs if method.name in runs):
            timing = taken[method.name]
            values = {
                "latency_median": timing.median,
                "latency_iqr": timing.iqr,
                "latency_p10": timing.quantile(0.1),
                "latency_p90": timing.quantile(0.9),
                "latency_ratio": timing.median / taken[""].median,
                "latency_n": float(len(timing.seconds)),
                "passes_forward": passes[method.name][0],
                "passes_backward": passes[method.name][1],
            }
            note = "unstable" if timing.unstable else ""
            key = keys[method.name]
            self.finish(key, [Record(model.name, method.name, "", -1, m, "", v, "ok", note, key) for m, v in values.items()])
        self.tick(before + steps - self.done, model.name)


def _masks(chunk: Chunk, model: ModelAdapter) -> Tensor | None:
    """(B,H,W) bool as the model sees them, or None when an image has none."""
    found = []
    for sample in chunk.samples:
        if sample.mask is None:
            return None
        fitted = fit_image(sample.mask.astype(np.uint8) * 255, model.source.preprocessing, mask=True)
        found.append(torch.from_numpy(fitted > 127))
    return torch.stack(found)


def _explain(
    model: ModelAdapter, cells: Sequence[Cell], images: Tensor, target: Target, tick: Callable[[int, str], None]
) -> dict[str, list[Tensor | str]]:
    """Key -> per image the map (h,w) or the reason why there is none; what shares the pass is explained together."""
    together = [cell for cell in cells if not cell.method.own_passes]
    found: dict[str, list[Tensor | str]] = {}
    groups = [together] if together else []
    groups += [[cell] for cell in cells if cell.method.own_passes]
    for group in groups:
        found |= _explain_group(model, group, images, target)
        tick(len(group) * len(images), f"{model.name} {group[-1].method.name}")
    return found


def _explain_group(model: ModelAdapter, cells: Sequence[Cell], images: Tensor, target: Target) -> dict[str, list[Tensor | str]]:
    """Explain; on a fault split first by method, then by halves of the images, down to the one that is at fault."""
    try:
        maps = explain_together(model, [(cell.method.name, cell.options) for cell in cells], images, target)
    except Exception as error:  # every fault of a method becomes a record
        if len(cells) > 1:
            parts = [_explain_group(model, [cell], images, target) for cell in cells]
            return {key: values for part in parts for key, values in part.items()}
        if len(images) > 1:
            middle = len(images) // 2
            halves = [
                _explain_group(model, cells, images[piece], target[piece] if isinstance(target, Tensor) else target)
                for piece in (slice(0, middle), slice(middle, None))
            ]
            return {cells[0].key: halves[0][cells[0].key] + halves[1][cells[0].key]}
        return {cells[0].key: [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]}
    return {cell.key: list(maps[cell.method.name].values.cpu()) for cell in cells}
