"""The timing pass of a model: every method alone, in interleaved rounds with the plain forward."""

import platform
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.explained import reason_of
from attncompare.benchmark.plan import Chunk, chosen_methods, options_of, support
from attncompare.benchmark.records import TIMING_MEASURES, Record, Status, cell_key
from attncompare.benchmark.scoring import fixed_target
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.timing import Timing, device_clock, time_interleaved
from attncompare.benchmark.worker import Worker
from attncompare.capture.capture import left_as_found
from attncompare.capture.targets import Target
from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import UnsupportedMethodError
from attncompare.explainer import explain_together
from attncompare.methods._base import Method

PLAIN = "(plain forward)"

Job = tuple[Method, Mapping[str, object]]


def time_model(worker: Worker, model: ModelAdapter, sample: Chunk) -> None:
    """Time every method that the model supports; a method that raises becomes a failed record."""
    spec = worker.spec
    jobs: list[Job] = [(m, options_of(spec, m)) for m in chosen_methods(spec)]
    jobs = [(method, options) for method, options in jobs if not support(model, method, options)]
    steps, before = (spec.repeats + 1) * (len(chosen_methods(spec)) + 1), worker.done
    keys = {method.name: _key(spec, model, jobs, (method, options)) for method, options in jobs}
    worker.tally.keys += list(keys.values())
    if all(worker.store.holds(key) for key in keys.values()):
        worker.tally.reused += len(keys)
        worker.tick(steps, model.name)
        return
    images = _images(spec, model, sample)
    with torch.no_grad(), left_as_found(model.model):
        target: Target = "embedding" if model.embedding else fixed_target(model, images, None).target

    def plain() -> object:
        with torch.no_grad():
            return model.forward(images)

    runs: dict[str, Callable[[], object]] = {PLAIN: plain}
    passes: dict[str, tuple[float, float]] = {}
    for method, options in jobs:

        def run(name: str = method.name, options: Mapping[str, object] = options) -> object:
            found = explain_together(model, [(name, options)], images, target)[name]
            passes[name] = (found.passes_forward, found.passes_backward)
            return found

        try:
            run()
        except Exception as error:
            key = keys[method.name]
            status: Status = "unsupported" if isinstance(error, UnsupportedMethodError) else "failed"
            why = reason_of(error)
            rows = [Record(model.name, method.name, "", -1, m, "", None, status, why, key) for m in TIMING_MEASURES]
            worker.finish(key, rows)
            continue
        runs[method.name] = run
    taken = time_interleaved(
        runs,
        device_clock(model.device),
        repeats=spec.repeats,
        seconds=spec.timing_seconds,
        tick=lambda: worker.tick(1, f"timing {model.name}"),
    )
    for name in passes:
        values = _measures(taken[name], taken[PLAIN]) | dict(
            zip(("passes_forward", "passes_backward"), passes[name], strict=True)
        )
        note = "unstable" if taken[name].unstable else ""
        worker.finish(keys[name], [_row(model, name, m, value, keys[name], note) for m, value in values.items()])
    worker.tick(before + steps - worker.done, model.name)


def _row(model: ModelAdapter, method: str, measure: str, value: float, key: str, note: str) -> Record:
    return Record(model.name, method, "", -1, measure, "", value, "ok", note, key)


def _measures(timing: Timing, plain: Timing) -> dict[str, float]:
    return {
        "latency_median": timing.median,
        "latency_iqr": timing.iqr,
        "latency_p10": timing.quantile(0.1),
        "latency_p90": timing.quantile(0.9),
        "latency_ratio": timing.median / plain.median,
        "latency_n": float(len(timing.seconds)),
    }


def _images(spec: BenchmarkSpec, model: ModelAdapter, sample: Chunk) -> Tensor:
    """(timing_batch,3,H,W): the first images of the data, filled up with noise when there are too few."""
    images = torch.rand(spec.timing_batch, 3, *model.size, generator=torch.Generator().manual_seed(spec.seed))
    for i, one in enumerate(sample.samples):
        images[i] = to_tensor(fit_image(one.image, model.source.preprocessing))
    return images.to(model.device)


def _key(spec: BenchmarkSpec, model: ModelAdapter, jobs: list[Job], job: Job) -> str:
    """Unlike a score's, a timing's key names the machine and the methods it was interleaved with."""
    method, options = job
    return cell_key(
        {
            "kind": "timing",
            "weights": model.weights_hash,
            "structure": model.structure_hash,
            "preprocessing": vars(model.source.preprocessing),
            "model": model.name,
            "method": method.name,
            "version": method.version,
            "options": options,
            "among": [other.name for other, _ in jobs],
            "batch": spec.timing_batch,
            "repeats": [spec.repeats, spec.timing_seconds],
            "host": platform.node(),
            "device": spec.device,
            "threads": torch.get_num_threads(),
        }
    )
