"""The ray engine: actors that keep their models loaded take one chunk after the other; a dead one is replaced."""

import os
import re
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import attncompare
from attncompare import tuning
from attncompare.benchmark.engines.actor import ChunkActor
from attncompare.benchmark.engines.sift import DEATHS, sift
from attncompare.benchmark.execution import Execution
from attncompare.benchmark.plan import chosen_methods, chunk_names
from attncompare.benchmark.timing.timed import timing_steps
from attncompare.benchmark.worker import Worker
from attncompare.data.datasets import Dataset
from attncompare.errors import AttnCompareError, Failure, SpecError

OBJECT_STORE = 80 * 2**20
"""Bytes; Ray's smallest is 75 MiB. Nothing but counts goes through it: actors write their results themselves."""
OPENING = "open"
ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Answer:
    """What came of an actor's call. death: why its process ended instead, None when it lived."""

    task: int | str
    result: Any
    death: Failure | None = None


class RayEngine:
    """Keeps every actor busy with one call at a time."""

    def __init__(self, ray: Any, make_actor: Any, opening: Sequence[Any], worker: Worker, dataset: Dataset) -> None:
        self.ray, self.make_actor, self.opening, self.worker, self.dataset = ray, make_actor, opening, worker, dataset
        self.threads = worker.spec.threads or torch.get_num_threads()
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, int | str]] = {}
        self.born_dead = 0

    def hire(self, count: int) -> None:
        """Start actors; they load their models."""
        for _ in range(count):
            self._start(self.make_actor(), OPENING, OPENING, *self.opening)

    def describe(self) -> dict[str, Any]:
        """What run.json says about where the numbers are made: the first actor's answer."""
        while not (answer := self._next()).result:
            pass
        described: dict[str, Any] = answer.result
        return described

    def score(self, indices: Sequence[int]) -> None:
        """Score chunks; one that takes its actor down again and again is sifted at the end."""
        left, deaths = deque(indices), Counter[int]()
        suspects: list[int] = []
        while left or any(task != OPENING for _, task in self.busy.values()):
            while self.idle and left:
                index = left.popleft()
                self._start(self.idle.pop(), "run_chunk", index, index, {}, {}, None)
            answer = self._next()
            if not isinstance(answer.task, int):
                continue
            index = answer.task
            if not answer.death:
                self._count(index, answer.result)
                continue
            deaths[index] += 1
            (left if deaths[index] < DEATHS else suspects).append(index)
        for index in suspects:
            self._sift(index)

    def _sift(self, index: int) -> None:
        """Find the images of a chunk that cannot be read or worked on, and score the chunk without them."""
        names = chunk_names(self.worker.spec, self.dataset, index)
        unreadable = sift(lambda some: self._call("read", some).death, names).lost
        good = [name for name in names if name not in unreadable]
        found = sift(lambda some: self._call("probe", index, some, unreadable).death, good)
        answer = self._call("run_chunk", index, found.lost, unreadable, found.pieces)
        if answer.death:  # alone each piece lives, one after the other they do not
            lost = found.lost | {name: answer.death for name in good if name not in found.lost}
            answer = self._call("run_chunk", index, lost, unreadable, [])
        if answer.death:
            raise AttnCompareError(f"chunk {index} cannot be recorded: {answer.death.reason}")
        self._count(index, answer.result)

    def time(self) -> None:
        """Run the timing pass on one actor, started when the others are gone, with the threads of a local run."""
        self.dismiss()
        self.hire(1)
        for i, name in enumerate(self.worker.spec.models):
            answer = self._call("time", i, self.threads)
            if answer.death:
                raise AttnCompareError(f"timing {name}: {answer.death.reason}; run again")
            self.worker.tally.add(answer.result)
            self.worker.tick(timing_steps(self.worker.spec), f"timing {name}")

    def dismiss(self) -> None:
        """End all actors."""
        for actor in (*self.idle, *(actor for actor, _ in self.busy.values())):
            self.ray.kill(actor)
        self.idle, self.busy = [], {}

    def _count(self, index: int, tally: Any) -> None:
        steps = len(chunk_names(self.worker.spec, self.dataset, index)) * len(chosen_methods(self.worker.spec))
        self.worker.tally.add(tally)
        self.worker.tick(steps * len(self.worker.spec.models), f"chunk {index}")

    def _start(self, actor: Any, method: str, task: int | str, *arguments: Any) -> None:
        self.busy[getattr(actor, method).remote(*arguments)] = (actor, task)

    def _call(self, method: str, *arguments: Any) -> Answer:
        """One call on any actor, alone."""
        while not self.idle:
            self._next()
        self._start(self.idle.pop(), method, method, *arguments)
        while (answer := self._next()).task != method:
            pass
        return answer

    def _next(self) -> Answer:
        """Wait for a call to end. An actor that died in it is replaced; an error that it raised is raised here."""
        done, _ = self.ray.wait(list(self.busy), num_returns=1)
        actor, task = self.busy.pop(done[0])
        try:
            result = self.ray.get(done[0])
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            self.ray.kill(actor)  # it may be out of reach and not dead
            death = cause_of_death(error)
            self.worker.tally.deaths.append(death.reason)
            self.born_dead += task == OPENING
            if self.born_dead == DEATHS:
                raise AttnCompareError(f"Ray workers die while they load the models: {death.reason}") from None
            self.hire(1)
            return Answer(task, None, death)
        self.idle.append(actor)
        self.born_dead = 0
        return Answer(task, result)


def cause_of_death(error: Exception) -> Failure:
    """What Ray says about an actor that died; by the time an image is given up it has been tried again."""
    text = " ".join(str(error).split())
    found = re.search(r"exit detail: ([^.]+)", text)
    return Failure("process", f"its worker process died: {found[1] if found else text[:200]}")


@contextmanager
def ray_engine(dataset: Dataset, worker: Worker, execution: Execution, chunks: int) -> Iterator[RayEngine]:
    """Start or join Ray and hire actors; they end, and a Ray started here ends, with the run."""
    spec, ray, ours = worker.spec, _import_ray(), False
    if not ray.is_initialized():
        ours = True
        _connect(ray, execution, spec.threads or 1)
    try:
        total = ray.cluster_resources()
        gpus = execution.gpus_per_worker
        gpus = (1.0 if spec.device.startswith("cuda") else 0.0) if gpus is None else gpus
        cpus = int(total.get("CPU", 0))
        threads = spec.threads or max(1, cpus // execution.workers if execution.workers else 1)
        _check_room(ray, threads, gpus)
        slots = min(cpus // threads, int(total.get("GPU", 0) / gpus) if gpus else cpus)
        workers = execution.workers or max(1, slots)
        remote = ray.remote(ChunkActor).options(num_cpus=threads, num_gpus=gpus, runtime_env=_environment(threads))
        folder = worker.store.folder
        folder = folder.absolute() if isinstance(folder, Path) else folder
        opening = (spec, folder, threads, tuning.applied())
        engine = RayEngine(ray, remote.remote, opening, worker, dataset)
        engine.hire(max(1, min(workers, chunks)))
        try:
            yield engine
        finally:
            engine.dismiss()
    finally:
        if ours:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise SpecError("engine ray needs ray; pip install 'attncompare[ray]'") from None
    return ray


def _connect(ray: Any, execution: Execution, threads: int) -> None:
    """Join a cluster, or start Ray on this machine with room for the workers asked for."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = execution.address or os.environ.get("RAY_ADDRESS")
    if not address:
        cpus = max(os.cpu_count() or 1, (execution.workers or 1) * threads)
        ray.init(
            include_dashboard=False,
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE,
            _system_config={"worker_niceness": 0},  # Ray's 15 would give way to everything else on the machine
            **quiet,
        )
        return
    _check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise SpecError(
            f"address {address}: no Ray cluster answers ({line}); start one with ray start --head"
        ) from error


def _check_answers(address: str) -> None:
    """SpecError unless something listens there: Ray itself would try for minutes. "auto" and "local" name no host."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SpecError(
            f"address {address}: no Ray cluster answers ({error}); start one with ray start --head"
        ) from error


def _check_room(ray: Any, threads: int, gpus: float) -> None:
    """SpecError unless some node can take an actor; otherwise the run would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
        raise SpecError(
            f"no Ray node has {threads} CPUs and {gpus:g} GPUs for a worker; lower threads or --gpus-per-worker"
        )


def _environment(threads: int) -> dict[str, dict[str, str]]:
    """A worker imports the package from where the driver did. Ray's own OMP_NUM_THREADS would be the actor's CPUs too."""
    root = str(Path(attncompare.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}}
