"""The local engine: one chunk after the other in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attncompare.benchmark.session import Session
from attncompare.benchmark.worker import Worker
from attncompare.data.datasets import Dataset
from attncompare.environment import thread_count


class LocalEngine:
    """Works on chunks itself."""

    def __init__(self, session: Session, worker: Worker) -> None:
        self.session, self.worker = session, worker

    def describe(self) -> dict[str, Any]:
        """What run.json says about where the numbers were made."""
        return self.session.describe()

    def score(self, indices: Sequence[int]) -> None:
        """Score chunks."""
        for index in indices:
            self.session.run_chunk(self.worker, index)

    def time(self) -> None:
        """Run the timing pass."""
        for model in self.session.models:
            self.session.time(self.worker, model)


@contextmanager
def local_engine(dataset: Dataset, worker: Worker) -> Iterator[LocalEngine]:
    """Load the models and set the threads; the previous number is restored."""
    with thread_count(worker.spec.threads):
        yield LocalEngine(Session.open(worker.spec, dataset), worker)
