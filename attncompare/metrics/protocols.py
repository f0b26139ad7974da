"""Named protocols: every choice that changes a deletion or insertion score, frozen and stored with each value."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from attncompare.errors import unknown_name

Baseline = Literal["mean", "blur", "black"]


@dataclass(frozen=True)
class Protocol:
    """How an image is taken apart.

    cells: None ranks single pixels; g ranks the g x g cells with borders floor(i H / g), each by its mean map value.
    steps: None for ceil(H W / 224), RISE's 224 pixels a step at 224 x 224; a number is an upper bound where
    `at_most_pixel_steps`, else exact. deletion: what replaces removed pixels. insertion: what the image starts from.
    "mean" is the model's mean colour, "blur" RISE's blur. After step k of n, round(k U / n) of the U units have changed.
    The score is the target's softmax probability (cosine similarity for embeddings) at x = k/n, k = 0..n; the area is
    the trapezoid sum over [0, 1].
    """

    name: str
    cells: int | None
    steps: int | None
    deletion: Baseline
    insertion: Baseline
    at_most_pixel_steps: bool
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

    def describe(self) -> dict[str, object]:
        """All its choices, as they enter a result's key."""
        return asdict(self)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("rise", None, None, "mean", "blur", True),
        Protocol("rise-fast", None, 28, "mean", "blur", True),
        Protocol("grid14", 14, 28, "blur", "blur", False),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name, or an error that suggests one."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
