"""A metric: a pure function of what it names, one value per image."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from torch import Tensor

from attncompare.registry import Registry

metrics: "Registry[Metric]" = Registry("metric", "attncompare.metrics")

Direction = Literal["higher", "lower"]


class Evidence(StrEnum):
    """What a metric may ask for by parameter name. B images, H W pixels, n protocol steps."""

    MAPS = "maps"  # (B,H,W) maps enlarged to the image
    MASKS = "masks"  # (B,H,W) bool, the object that decides the class
    DELETION_CURVE = "deletion_curve"  # (B,n+1) score as the most relevant units are removed
    INSERTION_CURVE = "insertion_curve"  # (B,n+1) score as they are put back


CURVES = frozenset({Evidence.DELETION_CURVE, Evidence.INSERTION_CURVE})


@dataclass(frozen=True)
class Metric:
    """What the harness knows of a metric.

    undefined: why a value may be NaN; it becomes a failed record with that reason, never a NaN in a mean.
    """

    name: str
    compute: Callable[..., Tensor]
    needs: tuple[Evidence, ...]
    better: Direction
    reference: str
    undefined: str
    version: int = 1

    @property
    def needs_mask(self) -> bool:
        """Whether it can only be computed where the evidence is known."""
        return Evidence.MASKS in self.needs

    @property
    def curve(self) -> Evidence | None:
        """The perturbation curve it summarises, if any."""
        return next((need for need in self.needs if need in CURVES), None)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.compute) or "").splitlines()[0]


def metric(
    *, better: Direction, reference: str, undefined: str = "the value is not defined", version: int = 1
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as a metric; its parameters name the evidence it needs."""

    def register(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        needs = tuple(Evidence(name) for name in inspect.signature(compute).parameters)
        metrics.add(compute.__name__, Metric(compute.__name__, compute, needs, better, reference, undefined, version))
        return compute

    return register
