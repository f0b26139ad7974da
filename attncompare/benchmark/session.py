"""What one process needs to work on a spec: the data opened, the models loaded, the folder of the results."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from attncompare import tuning
from attncompare.benchmark.openvino import openvino_forward
from attncompare.benchmark.plan import Chunk, check_target, chunk_names, read_chunk
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.timing.timed import time_model
from attncompare.benchmark.worker import Worker
from attncompare.data.datasets import Dataset
from attncompare.environment import environment
from attncompare.errors import Failure
from attncompare.metrics.user_protocols import get_protocol
from attncompare.models.adapter import ModelAdapter
from attncompare.models.load import load_model


@dataclass(frozen=True)
class Session:
    """The data and the models of a spec, ready to work on."""

    spec: BenchmarkSpec
    dataset: Dataset
    models: tuple[ModelAdapter, ...]

    @classmethod
    def open(cls, spec: BenchmarkSpec, dataset: Dataset) -> "Session":
        """Load the models; SpecError for a target that one of them lacks, errors of openvino_forward."""
        models = tuple(load_model(name, device=spec.device) for name in spec.models)
        check_target(spec, dataset, models)
        if spec.backend == "openvino" and not spec.timing_only:
            for model in models:
                openvino_forward(model)
        return cls(spec, dataset, models)

    def describe(self) -> dict[str, Any]:
        """What run.json says about where and with which models the numbers were made."""
        return {
            "protocol": get_protocol(self.spec.protocol).describe(),
            "environment": environment(self.spec.device) | {"tuning": tuning.describe()},
            "models": {m.name: m.describe() | {"weights_hash": m.weights_hash} for m in self.models},
        }

    def read(self, index: int, unreadable: Mapping[str, Failure] = MappingProxyType({})) -> Chunk:
        """The images of a chunk. unreadable: those that must not be tried, with the reason."""
        names = chunk_names(self.spec, self.dataset, index)
        chunk = read_chunk(self.dataset, [name for name in names if name not in unreadable])
        return replace(chunk, unreadable={**chunk.unreadable, **unreadable})

    def run_chunk(self, worker: Worker, index: int) -> None:
        """Score a chunk under every model, so that its images are read once."""
        chunk = self.read(index)
        for model in self.models:
            worker.run_chunk(model, chunk)

    def time(self, worker: Worker, model: ModelAdapter) -> None:
        """The timing pass of a model; nothing else may run on the machine."""
        time_model(worker, model, read_chunk(self.dataset, self.dataset.names[: self.spec.timing_batch]))
