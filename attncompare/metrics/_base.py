"""A metric: a pure function of the evidence it names, one value per image."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from torch import Tensor

from attncompare.registry import Asked, Registry, own_options

metrics: "Registry[Metric]" = Registry("metric", "attncompare.metrics")

Direction = Literal["higher", "lower"]
Score = Callable[[Tensor, Tensor], Tensor]
"""(images (n,3,H,W), which clean image each one is a copy of (n,)) -> scores (n,), in batches of the run's size."""
Explain = Callable[[Tensor, Tensor], Tensor]
"""(images (n,3,H,W), which clean image each one is a copy of (n,)) -> maps (n,h,w) of the method that is scored."""


class Evidence(StrEnum):
    """What a metric may ask for by parameter name. B images, H W pixels, n protocol steps."""

    MAPS = "maps"  # (B,H,W) maps enlarged to the image
    OTHER_MAPS = "other_maps"  # (B,H,W) the maps that `maps` are compared with
    MASKS = "masks"  # (B,H,W) bool, the object that decides the class
    DELETION_CURVE = "deletion_curve"  # (B,n+1) score as the most relevant units are removed
    INSERTION_CURVE = "insertion_curve"  # (B,n+1) score as they are put back
    LEAST_FIRST_CURVE = "least_first_curve"  # (B,n+1) score as the least relevant units are removed
    SHARES = "shares"  # (n+1,) float64 share of the units that has changed at each point of a curve
    IMAGES = "images"  # (B,3,H,W) in [0, 1]
    CLEAN_SCORES = "clean_scores"  # (B,) the target's score on the clean images
    MEAN_COLOR = "mean_color"  # (1,3,1,1) the model's mean color
    TARGET_SCORE = "target_score"  # Score
    EXPLAIN = "explain"  # Explain
    RANDOMIZED_MAPS = "randomized_maps"  # iterator of (B,h,w): the map again as more and more weights are shuffled
    SEED = "seed"  # int


CURVES = (Evidence.DELETION_CURVE, Evidence.INSERTION_CURVE, Evidence.LEAST_FIRST_CURVE)
FROM_METHOD = frozenset({Evidence.EXPLAIN, Evidence.RANDOMIZED_MAPS})
"""Evidence for which the method itself must be run again."""


@dataclass(frozen=True, kw_only=True)
class Metric(Asked):
    """What the harness knows of a metric.

    undefined: why a value may be NaN; it becomes a failed record with that reason, never a NaN in a mean. bounds: the
    lowest and highest value there can be. given: the values of its options, where some were set.
    """

    kind = "metric"
    needs: tuple[Evidence, ...]
    better: Direction
    undefined: str
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    given: Mapping[str, object] = field(default_factory=dict)

    @property
    def needs_mask(self) -> bool:
        """Whether it can only be computed where the evidence is known."""
        return Evidence.MASKS in self.needs

    @property
    def curves(self) -> tuple[Evidence, ...]:
        """The perturbation curves it summarizes."""
        return tuple(need for need in self.needs if need in CURVES)

    @property
    def curve(self) -> Evidence | None:
        """The perturbation curve it summarizes, if it is one."""
        return self.curves[0] if len(self.curves) == 1 else None

    @property
    def pairwise(self) -> bool:
        """Whether it compares two maps rather than scoring one."""
        return Evidence.OTHER_MAPS in self.needs

    def with_options(self, given: Mapping[str, object]) -> "Metric":
        """The same metric with some options set; an unknown one or a wrong value is an error that says what is allowed."""
        return replace(self, given=self.resolve(given))

    @property
    def setting(self) -> str:
        """The options that differ from their defaults, as they stand beside a value.

        >>> from attncompare.metrics.pointing_game import pointing_game
        >>> metrics.get("pointing_game").with_options({"tolerance": 15}).setting
        'tolerance=15'
        """
        changed = {o.name: self.given[o.name] for o in self.options if self.given.get(o.name, o.default) != o.default}
        return ", ".join(f"{name}={value}" for name, value in sorted(changed.items()))

    def values(self, evidence: Mapping[Evidence, object]) -> Tensor:
        """(B,) the metric of what it needs; NaN where it is undefined."""
        found: Tensor = self.compute(*(evidence[need] for need in self.needs), **self.given)
        return found

    def describe(self) -> list[object]:
        """Name, version and all options as they enter a result's key."""
        return [self.name, self.version, {o.name: o.default for o in self.options} | dict(self.given)]


def metric(
    *,
    better: Direction,
    reference: str,
    undefined: str = "the value is not defined",
    bounds: tuple[float, float] = (float("-inf"), float("inf")),
    version: int = 1,
    meaning: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as a metric: positional parameters name the evidence it needs, keyword-only ones are options.

    bounds: the lowest and highest value there can be. meaning, limits: of each option, as for a method.
    """

    def register(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters = inspect.signature(compute).parameters.values()
        needs = tuple(Evidence(one.name) for one in parameters if one.kind is not one.KEYWORD_ONLY)
        options = own_options(compute, meaning or {}, {}, limits or {})
        name = compute.__name__
        made = Metric(
            name=name,
            compute=compute,
            needs=needs,
            options=options,
            better=better,
            reference=reference,
            undefined=undefined,
            bounds=bounds,
            version=version,
        )
        metrics.add(name, made)
        return compute

    return register
