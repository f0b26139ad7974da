"""What runs in a Ray worker: a session with its models loaded, called chunk by chunk."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from attncompare.benchmark.plan import read_chunk
from attncompare.benchmark.session import Session
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import ResultStore
from attncompare.benchmark.worker import Tally, Worker
from attncompare.data.datasets import open_dataset
from attncompare.errors import Failure, SpecError
from attncompare.storage.folder import Location
from attncompare.tuning import Tuning, tune


class ChunkActor:
    """Works on one chunk at a time and writes its cells into the run's folder; knows nothing of Ray."""

    def open(self, spec: BenchmarkSpec, folder: Location, threads: int, tuning: Tuning) -> dict[str, Any]:
        """Set the process up as the driver is, and load the models; what run.json says about them."""
        tune(tuning)
        torch.set_num_threads(threads)
        self.store = ResultStore(folder)
        self.session = Session.open(spec, open_dataset(spec.data, spec.limit))
        self.worker = Worker(spec, self.store, lambda tick: None, 0)
        return self.session.describe()

    def run_chunk(
        self,
        index: int,
        lost: Mapping[str, Failure],
        unreadable: Mapping[str, Failure],
        pieces: Sequence[Sequence[str]] | None,
    ) -> Tally:
        """Score a chunk; lost, pieces: see Worker.run_chunk. unreadable: images that must not even be read."""
        if not self.store.files.exists("run.json"):
            raise SpecError(
                f"a Ray worker does not see the run's folder {self.store.folder}; give --out a folder that all nodes share,"
                " or a URL"
            )
        chunk = self.session.read(index, unreadable)
        self.worker.restart()
        for model in self.session.models:
            self.worker.run_chunk(model, chunk, lost, pieces)
        return self.worker.tally

    def read(self, names: Sequence[str]) -> None:
        """Read images and keep nothing, to see whether that can be lived."""
        read_chunk(self.session.dataset, names)

    def probe(self, index: int, names: Sequence[str], unreadable: Mapping[str, Failure]) -> None:
        """Work on some images of a chunk and keep nothing, to see whether that can be lived."""
        chunk = self.session.read(index, unreadable)
        for model in self.session.models:
            self.worker.probe(model, chunk, names)

    def time(self, model: int, threads: int) -> Tally:
        """The timing pass of one model."""
        torch.set_num_threads(threads)
        self.worker.restart()
        self.session.time(self.worker, self.session.models[model])
        return self.worker.tally
