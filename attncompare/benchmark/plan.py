"""The grid of a benchmark, cell by cell, each with the key that decides whether it is already done."""

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from attncompare.benchmark.execution import Execution
from attncompare.benchmark.records import cell_key
from attncompare.benchmark.scoring import MetricRequest, choose_metrics
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.capture.target import CLASS, TargetScore, prompts_of, text_key
from attncompare.data.datasets import Dataset, Sample
from attncompare.errors import AttnCompareError, Failure, ImageError, SpecError, unknown_name
from attncompare.explain import make_job
from attncompare.inspection.structure import ModelStructure
from attncompare.methods._base import Method, methods
from attncompare.metrics._base import Metric, metrics
from attncompare.metrics.user_protocols import get_protocol
from attncompare.models.adapter import ModelAdapter


@dataclass(frozen=True)
class Chunk:
    """Some images of a data set: the readable ones, and the reasons why the others are not."""

    samples: tuple[Sample, ...]
    unreadable: Mapping[str, Failure]

    def only(self, names: Container[str]) -> "Chunk":
        """The readable images of some names."""
        return Chunk(tuple(sample for sample in self.samples if sample.name in names), {})


@dataclass(frozen=True)
class Cell:
    """One model, method and chunk; unsupported: the reason why the model cannot supply the method."""

    method: Method
    options: Mapping[str, object]
    key: str
    unsupported: str = ""


def chosen_methods(spec: BenchmarkSpec) -> list[Method]:
    """The methods of a spec in its order; "all" is every method, "cheap" all but the expensive ones.

    Unknown names and options are errors here.
    """
    if spec.methods in (("all",), ("cheap",)):
        chosen = [method for method in methods if spec.methods == ("all",) or not method.expensive]
    else:
        if unknown := [name for name in spec.methods if name not in methods.names()]:
            raise unknown_name("method", unknown[0], (*methods.names(), "all", "cheap"))
        chosen = [methods.get(name) for name in spec.methods]
    for name, given in spec.options.items():
        if name not in metrics.names():
            methods.get(name).resolve(given)
    return chosen


def chosen_metrics(spec: BenchmarkSpec) -> list[Metric]:
    """The metrics of a spec in its order, with their options; errors as in choose_metrics."""
    requests: list[MetricRequest] = [(name, spec.options.get(name, {})) for name in spec.metrics]
    return choose_metrics(requests, get_protocol(spec.protocol))


def options_of(spec: BenchmarkSpec, method: Method) -> dict[str, object]:
    """A method's options with their values; a method that has a seed takes the spec's unless it is given its own."""
    seeded = {"seed": spec.seed} if any(option.name == "seed" for option in method.options) else {}
    return method.resolve(seeded | spec.options.get(method.name, {}))


def check_target(spec: BenchmarkSpec, dataset: Dataset, models: Sequence[ModelAdapter]) -> None:
    """Raise unless every model has the target; "label" needs data with labels and models of the same classes.

    A protocol that asks whether the argmax is still the target needs a class, and its steps and cells need pixels.
    """
    protocol = get_protocol(spec.protocol)
    for model in models:
        if any(metric.curves for metric in chosen_metrics(spec)):
            protocol.check(model.size)
        if protocol.score == "argmax" and (model.embedding or prompts_of(spec.target, 1)):
            raise SpecError(f"protocol {protocol.name} asks for the argmax; {model.name} has no class as target")
    if spec.target not in ("argmax", "label"):
        for model in models:
            TargetScore.of(model, torch.zeros(1, model.structure.outputs), spec.target)
    if spec.target != "label":
        return
    if dataset.class_names is None:
        raise SpecError(f"target 'label': the data {spec.data!r} has no labels; use target 'argmax'")
    for model in models:
        if model.class_names != dataset.class_names:
            raise SpecError(f"target 'label': the classes of {model.name} are not those of the data {spec.data!r}")


def check_names(spec: BenchmarkSpec) -> None:
    """Raise for an unknown method, option, metric or protocol, before anything runs."""
    chosen_methods(spec)
    chosen_metrics(spec)


def chunk_indices(spec: BenchmarkSpec, dataset: Dataset, execution: Execution) -> Sequence[int]:
    """The chunks that are scored here: all, those of a shard, or none where only time is measured.

    SpecError for a shard of a timing pass.
    """
    if execution.shard and spec.timing_only:
        raise SpecError("a timing pass runs alone on its machine; leave out --shard, or --timing-only")
    return execution.chunks(0 if spec.timing_only else -(-len(dataset.names) // spec.chunk_size))


def chunk_names(spec: BenchmarkSpec, dataset: Dataset, index: int) -> Sequence[str]:
    """The images of a chunk."""
    return dataset.names[index * spec.chunk_size : (index + 1) * spec.chunk_size]


def read_chunk(dataset: Dataset, names: Sequence[str]) -> Chunk:
    """Load some samples; an unreadable image becomes a reason, not an end."""
    samples, unreadable = [], {}
    for name in names:
        try:
            samples.append(dataset.load(name))
        except ImageError as error:
            unreadable[name] = Failure.of(error)
    return Chunk(tuple(samples), unreadable)


def support(model: ModelAdapter, method: Method, options: Mapping[str, object]) -> str:
    """Why a model cannot be explained by a method, or "". A layer the model lacks counts as such a reason."""
    try:
        make_job(model, (method.name, options))
    except AttnCompareError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class ModelPlan:
    """The cells of one model: what they have in common is worked out once, since a run may have 100,000s of them."""

    spec: BenchmarkSpec
    model: ModelAdapter

    @cached_property
    def _common(self) -> str:
        """A digest of what all cells of the model depend on.

        Host, device, threads and batch size decide no value and are left out. So is `save_maps`: a cell is the
        same with and without its maps, which `MapArchive` knows by the cell's key.
        """
        spec, model = self.spec, self.model
        prompts = prompts_of(spec.target, 1)
        named = isinstance(spec.target, str) and spec.target.startswith(CLASS)
        content = {
            "kind": "score",
            "model": model.name,
            "weights": model.weights_hash,
            "structure": model.structure_hash,
            "preprocessing": vars(model.source.preprocessing),
            "parts": parts_hash(model.structure),
            "embedding": model.embedding,
            "metrics": [metric.describe() for metric in chosen_metrics(spec)],
            "protocol": get_protocol(spec.protocol).describe(),
            "target": text_key(model, prompts) if prompts else spec.target,
            "class": model.class_index(str(spec.target).removeprefix(CLASS)) if named else None,
            "dtype": spec.dtype,
            "seed": spec.seed,
        } | ({} if spec.backend == "torch" else {"backend": spec.backend})  # torch: as before there was a choice
        return cell_key(content)

    @cached_property
    def _reads_masks(self) -> bool:
        return any(metric.needs_mask for metric in chosen_metrics(self.spec))

    @cached_property
    def _rows(self) -> list[Cell]:
        """A cell without a key for each method."""
        cells = []
        for method in chosen_methods(self.spec):
            options = options_of(self.spec, method)
            cells.append(Cell(method, options, "", support(self.model, method, options)))
        return cells

    def cells(self, chunk: Chunk) -> list[Cell]:
        """The cells of a chunk, one for each method."""
        shared = {"common": self._common, "images": cell_key(self._content(chunk))}
        return [
            replace(
                cell,
                key=cell_key(
                    shared | {"method": cell.method.name, "version": cell.method.version, "options": cell.options}
                ),
            )
            for cell in self._rows
        ]

    def _content(self, chunk: Chunk) -> dict[str, object]:
        """The images, and what else of them the spec makes use of."""
        samples = chunk.samples
        found: dict[str, object] = {
            "images": [sample.content_hash for sample in samples]
            + sorted(f"unreadable {name}" for name in chunk.unreadable),
            "names": [sample.name for sample in samples],
        }
        if self.spec.target == "label":
            found["labels"] = [sample.label for sample in samples]
        if self._reads_masks:
            found["masks"] = [sample.mask_hash for sample in samples]
        return found


def parts_hash(structure: ModelStructure) -> str:
    """sha256 of all that a model was found to supply; not of the wording of what it lacks."""
    parts = vars(structure) | {
        "missing": sorted(map(str, structure.missing)),
        "windows": [
            [block.path, block.axes, *(_plain(value) for value in vars(block.geometry).values())]
            for block in structure.windows
        ],
    }
    text = json.dumps(parts, default=vars, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, torch.Tensor) else value
