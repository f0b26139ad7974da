"""Run a benchmark: what is missing, nothing twice, and every fault a record."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from attncompare.benchmark.engines.local import local_engine
from attncompare.benchmark.execution import Execution
from attncompare.benchmark.plan import check_names, chosen_methods, chunk_indices, chunk_names
from attncompare.benchmark.query import query_run
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.statistics import summarize
from attncompare.benchmark.store import ResultStore
from attncompare.benchmark.timing.timed import timing_steps
from attncompare.benchmark.worker import Worker
from attncompare.data.datasets import Dataset, open_dataset
from attncompare.errors import SpecError
from attncompare.progress import Progress
from attncompare.registry import report_function
from attncompare.storage.folder import Location, is_url


class Engine(Protocol):
    """Who works on the chunks; progress and counts go to the Worker it was made with."""

    def describe(self) -> dict[str, Any]:
        """What run.json says about where, and with which models, the numbers are made."""

    def score(self, indices: Sequence[int]) -> None:
        """Score chunks."""

    def time(self) -> None:
        """Run the timing pass, with nothing beside it."""


@dataclass(frozen=True)
class Run:
    """A finished (or partly finished) benchmark on disk.

    computed, reused: cells. failed: failed records among those computed now. name: the file that describes it, which is
    another one for a shard.
    """

    folder: Location
    computed: int = 0
    reused: int = 0
    failed: int = 0
    name: str = "run.json"

    def records(self) -> pd.DataFrame:
        """One row per value, with the columns of Record and device, threads, batch_size and scored_by."""
        return ResultStore(self.folder).read(self.manifest()["keys"])

    def query(self, sql: str) -> pd.DataFrame:
        """The answer to one SQL statement over the view `records`; SpecError when it is wrong. Changes nothing."""
        return query_run(self.folder, sql, self.name)

    def summary(self) -> pd.DataFrame:
        """One row per model, method and measure: mean with its 95 % interval, n, failures."""
        return summarize(self.records())

    def manifest(self) -> dict[str, Any]:
        """The content of run.json, or of the shard's file."""
        return ResultStore(self.folder).manifest(self.name)

    def report(self) -> Location:
        """Write report.html and return its path or URL."""
        written: Location = report_function("html.write_report")(self.folder)
        return written


def run_benchmark(
    spec: BenchmarkSpec,
    out: Location,
    *,
    progress: Progress = lambda tick: None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
) -> Run:
    """Run a spec into a folder; cells that are there already are not computed again.

    out: a path, or a URL that fsspec knows, such as "s3://bucket/run" (with the plug-in for it installed).

    Unknown names and options raise before anything runs. A method that a model cannot supply, an unreadable image and a
    method that raises become records with their reason, and the run goes on. A shard scores its share of the chunks and is
    described in shards/; the run without a shard that follows unites them, and times what is to be timed.
    """
    check_names(spec)
    if not is_url(out) and Path(out).is_file():
        raise SpecError(f"out {out} is a file; a run needs a folder")
    store = ResultStore(out)
    dataset = open_dataset(spec.data, spec.limit)
    chunks = chunk_indices(spec, dataset, execution)
    timing = (spec.timing or spec.timing_only) and not execution.shard
    worker = Worker(spec, store, progress, _total(spec, dataset, chunks, timing))
    with _engine(dataset, worker, execution, len(chunks)) as engine:
        manifest = engine.describe() | {
            "spec": spec.model_dump(mode="json"),
            "images": len(dataset.names),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None,
            "keys": [],
        }
        store.write_manifest(manifest, execution.manifest)
        try:
            engine.score(chunks)
            if timing:
                engine.time()
            manifest["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        finally:  # also when interrupted: what the run folder shows are this run's cells, not an earlier one's
            tally = worker.tally
            done = store.present(tally.keys)
            counts = {name: value for name, value in vars(tally).items() if name not in ("keys", "failed")}
            store.write_manifest(manifest | {"keys": done} | counts, execution.manifest)
    return Run(store.folder, tally.computed, tally.reused, tally.failed, execution.manifest)


def _engine(dataset: Dataset, worker: Worker, execution: Execution, chunks: int) -> AbstractContextManager[Engine]:
    """The engine asked for; Ray is not imported before."""
    if execution.engine == "local":
        return local_engine(dataset, worker)
    from attncompare.benchmark.engines.ray import ray_engine

    return ray_engine(dataset, worker, execution, chunks)


def _total(spec: BenchmarkSpec, dataset: Dataset, chunks: Sequence[int], timing: bool) -> int:
    """Progress steps of a run: one per method and image, and one per timed repeat."""
    count = len(chosen_methods(spec))
    scored = sum(len(chunk_names(spec, dataset, index)) for index in chunks)
    return len(spec.models) * (scored * count + timing_steps(spec) * timing)
