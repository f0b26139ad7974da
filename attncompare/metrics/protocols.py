"""Named protocols: every choice that changes a perturbation score, frozen and stored with each value."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from attncompare.errors import SpecError

Baseline = Literal["mean", "blur", "black"]
ScoreKind = Literal["probability", "argmax"]


@dataclass(frozen=True)
class Protocol:
    """How an image is taken apart.

    cells: None ranks single pixels; g ranks the g x g cells with borders floor(i H / g), each by its mean map value.
    steps: None for ceil(H W / 224), RISE's 224 pixels a step at 224 x 224; a number is an upper bound where
    `at_most_pixel_steps`, else exact. deletion: what replaces removed pixels. insertion: what the image starts from, None
    where the protocol has no insertion. "mean" is the model's mean color, "blur" RISE's blur, "black" 0.
    After step k of n, round(k U / n) of the U units have changed. until: the share of the units at which a curve ends.
    score: the target's softmax probability (cosine similarity for embeddings and texts), or 1 while the argmax is still
    the target, else 0. A curve has the points x = k/n, k = 0 ... floor(until n); its area is the trapezoid sum over
    them, not divided by their span. version: raised whenever a value changes.
    """

    name: str
    cells: int | None
    steps: int | None
    deletion: Baseline
    insertion: Baseline | None
    at_most_pixel_steps: bool = False
    until: float = 1.0
    score: ScoreKind = "probability"
    version: int = 1

    def count(self, size: tuple[int, int]) -> int:
        """N for an image of that size.

        >>> PROTOCOLS["rise"].count((224, 224)), PROTOCOLS["rise-fast"].count((224, 224))
        (224, 28)
        """
        by_pixels = math.ceil(size[0] * size[1] / 224)
        if self.steps is None:
            return by_pixels
        return min(self.steps, by_pixels) if self.at_most_pixel_steps else self.steps

    def last(self, size: tuple[int, int]) -> int:
        """The last step that is scored.

        >>> PROTOCOLS["chefer"].last((224, 224))
        9
        """
        return math.floor(self.until * self.count(size) + 1e-9)

    def shares(self, size: tuple[int, int]) -> Tensor:
        """(points,) float64 share of the units that has changed at each point of a curve.

        >>> PROTOCOLS["chefer"].shares((224, 224)).tolist()[:3]
        [0.0, 0.1, 0.2]
        """
        return torch.arange(self.last(size) + 1, dtype=torch.float64) / self.count(size)

    def check(self, size: tuple[int, int]) -> None:
        """Raise SpecError where a curve would have one point, or a cell no pixel, for images of that size."""
        image = f"images of {size[0]} x {size[1]} pixels"
        if self.last(size) < 1:
            raise SpecError(
                f"protocol {self.name} scores no step of {image}: until = {self.until!r} lies before the first of "
                f"{self.count(size)}; give a larger until or more steps"
            )
        if self.cells is not None and self.cells > min(size):
            raise SpecError(
                f"protocol {self.name} has {self.cells} x {self.cells} cells, more than {image} have rows or columns; "
                "use one that ranks pixels, such as rise-fast, or a TOML file with fewer cells"
            )

    def describe(self) -> dict[str, object]:
        """All its choices, as they enter a result's key."""
        return asdict(self)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("rise", None, None, "mean", "blur", True),
        Protocol("rise-fast", None, 28, "mean", "blur", True),
        Protocol("grid14", 14, 28, "blur", "blur"),
        Protocol("chefer", None, 10, "black", None, until=0.9, score="argmax"),
        Protocol("srg", 14, 28, "mean", None),
    )
}
