"""How far a long task has come."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """Progress: how many of `total` steps are done, and what is running."""

    done: int
    total: int
    what: str


Progress = Callable[[Tick], None]
