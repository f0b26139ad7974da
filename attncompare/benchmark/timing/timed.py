"""The timing pass of a model: what is missing is measured in fresh processes and becomes records."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from attncompare import tuning
from attncompare.benchmark.explained import explain_cells, maps_of
from attncompare.benchmark.plan import Cell, Chunk, chosen_methods, options_of, support
from attncompare.benchmark.records import Variant, cell_key
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.timing.isolated import measure_apart
from attncompare.benchmark.timing.measured import as_timing_records, without_timing
from attncompare.benchmark.timing.process import Request
from attncompare.benchmark.timing.variants import refusal
from attncompare.benchmark.worker import Worker
from attncompare.capture.target import Target, TargetScore
from attncompare.data.images import fit_image, to_tensor
from attncompare.environment import gpu_name
from attncompare.errors import AttnCompareError, Failure
from attncompare.models.adapter import ModelAdapter
from attncompare.state import preserve_state

PROTOCOL_VERSION = 1
"""Raised when a change of the pass changes what its numbers mean; part of every key."""


@dataclass(frozen=True)
class Scene:
    """What a model is timed on: images (B,3,H,W), their target, and per method the maps that scoring would see.

    maps: one per image, or the reason why there is none.
    """

    images: Tensor
    target: list[int] | str
    maps: dict[str, list[Tensor | Failure]]


def time_model(worker: Worker, model: ModelAdapter, sample: Chunk) -> None:
    """Time every method on a model under every variant; what cannot be timed becomes records with the reason."""
    spec, store, end = worker.spec, worker.store, worker.done + timing_steps(worker.spec)
    work: dict[Variant, list[Cell]] = {}
    for variant in spec.timing_variants:
        cells = _cells(spec, model, sample, variant)
        worker.tally.keys += [cell.key for cell in cells]
        missing = [cell for cell in cells if not store.holds(cell.key)]
        worker.tally.reused += len(cells) - len(missing)
        for cell in [cell for cell in missing if cell.unsupported]:
            refused = without_timing(model.name, cell, variant, Failure("unsupported", cell.unsupported))
            worker.finish(cell.key, refused, spec.timing_batch)
        work[variant] = [cell for cell in missing if not cell.unsupported]
    needed = {cell.method.name: cell for cells in work.values() for cell in cells}
    if needed:
        scene = _scene_or_reason(spec, model, sample, list(needed.values()))

        def tick(running: str) -> None:
            worker.tick(int(worker.done + 1 < end), f"timing {model.name} {running}")

        for variant, cells in work.items():
            _time_cells(worker, model, scene, cells, variant, tick)
    worker.tick(end - worker.done, model.name)


def timing_steps(spec: BenchmarkSpec) -> int:
    """Progress steps of one model: a warm-up and the repeats of every method and of the plain forward."""
    return len(spec.timing_variants) * (spec.repeats + 1) * (len(chosen_methods(spec)) + 1)


def _time_cells(
    worker: Worker,
    model: ModelAdapter,
    scene: Scene,
    cells: Sequence[Cell],
    variant: Variant,
    tick: Callable[[str], None],
) -> None:
    """Measure some methods under one variant; each becomes a finished cell."""
    faults = {c.key: [one for one in scene.maps[c.method.name] if isinstance(one, Failure)] for c in cells}
    alive = [cell for cell in cells if not faults[cell.key]]
    request = _request(worker.spec, model, scene, alive, variant)
    found = measure_apart(request, scene.images, tick)
    for cell in cells:
        if faults[cell.key]:
            records = without_timing(model.name, cell, variant, faults[cell.key][0])
        else:
            maps = [one for one in scene.maps[cell.method.name] if isinstance(one, Tensor)]
            records = as_timing_records(model.name, cell, variant, found, torch.stack(maps))
        worker.finish(cell.key, records, worker.spec.timing_batch)


def _request(
    spec: BenchmarkSpec, model: ModelAdapter, scene: Scene, cells: Sequence[Cell], variant: Variant
) -> Request:
    return Request(
        model=model.name,
        weights=model.weights_hash,
        device=spec.device,
        threads=torch.get_num_threads(),
        variant=variant,
        jobs={cell.method.name: cell.options for cell in cells},
        target=scene.target,
        repeats=spec.repeats,
        seconds=spec.timing_seconds,
        tuning=asdict(tuning.applied()),
        matmul=torch.get_float32_matmul_precision(),
    )


def _scene_or_reason(spec: BenchmarkSpec, model: ModelAdapter, sample: Chunk, cells: Sequence[Cell]) -> Scene:
    """The scene; a model that cannot be run at this batch has a reason in place of every map, and the run goes on."""
    try:
        return _scene(spec, model, sample, cells)
    except AttnCompareError:  # a wrong spec
        raise
    except Exception as error:  # such as memory that runs out
        failure = Failure.of(error)
        failure = replace(failure, reason=f"a batch of {spec.timing_batch} cannot be run: {failure.reason}")
        return Scene(torch.empty(0), "", {cell.method.name: [failure] for cell in cells})


def _scene(spec: BenchmarkSpec, model: ModelAdapter, sample: Chunk, cells: Sequence[Cell]) -> Scene:
    """The first images of the data, filled up with noise when there are too few; maps as the scoring pass makes them."""
    images = torch.rand(spec.timing_batch, 3, *model.size, generator=torch.Generator().manual_seed(spec.seed))
    for i, one in enumerate(sample.samples):
        images[i] = to_tensor(fit_image(one.image, model.source.preprocessing))
    images = images.to(model.device)
    with torch.no_grad(), preserve_state(model.module):
        outputs = model.forward(images)
    asked: Target = spec.target if spec.target not in ("argmax", "label", "embedding") else None
    score = TargetScore.of(model, outputs, "embedding" if model.embedding and asked is None else asked)
    classes = score.target.tolist()
    if spec.target == "label":  # noise has none: it keeps the model's choice
        classes[: len(sample.samples)] = [one.label for one in sample.samples]
    target: list[int] | str = str(asked) if score.prompts else "embedding" if model.embedding else classes
    fixed = target if isinstance(target, str) else torch.tensor(target, device=images.device)
    maps = maps_of(explain_cells(model, cells, images, fixed, lambda count, what: None))
    return Scene(images, target, {cell.method.name: maps[cell.key] for cell in cells})


def _cells(spec: BenchmarkSpec, model: ModelAdapter, sample: Chunk, variant: Variant) -> list[Cell]:
    """The timings of a model under a variant. Unlike a score's, their keys name the machine and its settings."""
    shared = {
        "kind": "timing",
        "protocol": PROTOCOL_VERSION,
        "model": model.name,
        "weights": model.weights_hash,
        "structure": model.structure_hash,
        "preprocessing": vars(model.source.preprocessing),
        "images": [one.content_hash for one in sample.samples],
        "target": spec.target,
        "seed": spec.seed,
        "batch": spec.timing_batch,
        "repeats": [spec.repeats, spec.timing_seconds],
        "variant": variant,
        "host": platform.node(),
        "device": spec.device,
        "gpu": gpu_name(spec.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "tuning": tuning.describe(),
        "matmul": torch.get_float32_matmul_precision(),
    }
    cells = []
    for method in chosen_methods(spec):
        options = options_of(spec, method)
        key = cell_key(shared | {"method": method.name, "version": method.version, "options": options})
        cells.append(Cell(method, options, key, support(model, method, options) or refusal(variant, method)))
    return cells
