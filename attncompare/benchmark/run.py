"""Run a benchmark: what is missing, nothing twice, and every fault a record."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from attncompare import tuning
from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.plan import check_names, check_target, chosen_methods, read_chunk
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.statistics import summarise
from attncompare.benchmark.store import ResultStore
from attncompare.benchmark.timed import time_model
from attncompare.benchmark.worker import Progress, Worker
from attncompare.data.datasets import Dataset, open_dataset
from attncompare.errors import SpecError
from attncompare.loading import load_model
from attncompare.metrics.protocols import get_protocol

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "captum", "numpy", "scipy", "pyarrow")


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
        """One row per value, with the columns of Record and device, threads and batch_size."""
        return ResultStore(self.folder).read(self.manifest()["keys"])

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
        "tuning": tuning.describe(),
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
    if Path(out).is_file():
        raise SpecError(f"out {out} is a file; a run needs a folder")
    store = ResultStore(Path(out))
    dataset = open_dataset(spec.data, spec.limit)
    with thread_count(spec.threads):
        models = [load_model(name, device=spec.device) for name in spec.models]
        check_target(spec, dataset, models)
        manifest: dict[str, Any] = {
            "spec": spec.model_dump(mode="json"),
            "protocol": get_protocol(spec.protocol).describe(),
            "environment": environment(spec.device),
            "models": {m.name: m.describe() | {"weights_hash": m.weights_hash} for m in models},
            "images": len(dataset.names),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None,
            "keys": [],
        }
        store.write_manifest(manifest)
        worker = Worker(spec, store, progress, _total(spec, len(dataset.names)))
        try:
            _work(worker, spec, dataset, models)
            manifest["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        finally:  # also when interrupted: what the run folder shows are this run's cells, not an earlier one's
            done = [key for key in worker.keys if store.path(key).exists()]
            counts = {"computed": worker.computed, "reused": worker.reused, "deviation": worker.deviation}
            store.write_manifest(manifest | {"keys": done} | counts)
    return Run(store.folder, worker.computed, worker.reused, worker.failed)


def _work(worker: Worker, spec: BenchmarkSpec, dataset: Dataset, models: Sequence[ModelAdapter]) -> None:
    """Score chunk by chunk, so that every image is read once for all models, then time model by model."""
    for start in range(0, len(dataset.names) if not spec.timing_only else 0, spec.chunk_size):
        chunk = read_chunk(dataset, dataset.names[start : start + spec.chunk_size])
        for model in models:
            worker.run_chunk(model, chunk)
    if spec.timing or spec.timing_only:
        sample = read_chunk(dataset, dataset.names[: spec.timing_batch])
        for model in models:
            time_model(worker, model, sample)


def _total(spec: BenchmarkSpec, images: int) -> int:
    """Progress steps of a run: one per method and image, and one per timed repeat."""
    count = len(chosen_methods(spec))
    scoring = 0 if spec.timing_only else images * count
    timing = (spec.repeats + 1) * (count + 1) if spec.timing or spec.timing_only else 0
    return len(spec.models) * (scoring + timing)
