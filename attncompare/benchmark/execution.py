"""How a run is carried out: engine, share of the chunks, workers. What decides values is in the spec."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attncompare.errors import SpecError, unknown_name

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Execution:
    """The engine and its settings; no key and no score depends on them.

    shard: (i, n), only every n-th chunk of the plan, from the i-th on; i counts from 1. The other fields are Ray's.
    workers: how many actors, None for as many as the cluster has slots. gpus_per_worker: a fraction lets several share a
    GPU; None is 1 on cuda, else 0. address: of a running cluster, None starts Ray on this machine.

    >>> list(Execution(shard=(2, 3)).chunks(8))
    [1, 4, 7]
    """

    engine: str = "local"
    shard: tuple[int, int] | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if self.shard and not 1 <= self.shard[0] <= self.shard[1]:
            raise SpecError(f"shard {self.shard[0]}/{self.shard[1]}: the first number must be 1 to {self.shard[1]}")
        if self.workers is not None and self.workers < 1:
            raise SpecError(f"workers must be at least 1, not {self.workers}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise SpecError(f"gpus-per-worker must be 0 or more, not {self.gpus_per_worker}")
        if self.engine == "ray" and self.shard:
            raise SpecError("engine ray shares the work out by itself; leave out --shard, or use it with engine local")
        for name in ("workers", "gpus_per_worker", "address"):
            if self.engine != "ray" and getattr(self, name) is not None:
                raise SpecError(f"{name.replace('_', '-')} is a setting of Ray; add --engine ray, or leave it out")

    def chunks(self, count: int) -> Sequence[int]:
        """Which of a plan's chunks are worked on here."""
        first, step = (self.shard[0] - 1, self.shard[1]) if self.shard else (0, 1)
        return range(count)[first::step]

    @property
    def manifest(self) -> str:
        """The file that describes this run, within its folder; every shard has its own."""
        return f"shards/{self.shard[0]}-of-{self.shard[1]}.json" if self.shard else "run.json"


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read "i/n" as two numbers, or SpecError.

    >>> parse_shard("2/8")
    (2, 8)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found:
        raise SpecError(f"shard {text!r}: write i/n, such as 1/4 for the first of four")
    return int(found[1]), int(found[2])
