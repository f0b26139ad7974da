"""Maps made small for a page: a picture of levels, and the value of every level."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attncompare.metrics.perturbation import rank_units

EXACT = 1024
"""Maps of so many different values at most are kept as they are."""
LEVELS = 256
SMALL = 2048
"""Bytes of a map that no PNG would make much smaller."""


@dataclass(frozen=True)
class Levels:
    """A map (h,w) as a level per place, level (h,w) uint16, and the value of each level, value (L,) float32, falling.

    A map with more than 1024 different values is kept in at most 256 levels of equal size, each with the mean of its
    values. Where `steps` of a protocol rank the places themselves, no level lies on both sides of a step.
    """

    level: NDArray[np.uint16]
    value: NDArray[np.float32]

    @staticmethod
    def of(values: NDArray[np.float32], steps: int | None = None, seed: int = 0) -> "Levels":
        """Keep (h,w) values; steps: how many steps of equal size rank the places of this map; ties are broken by seed.

        >>> Levels.of(np.array([[1.0, 3.0], [3.0, 2.0]], np.float32)).level.tolist()
        [[2, 0], [0, 1]]
        """
        different, places = np.unique(-values, return_inverse=True)
        if len(different) <= EXACT:
            return Levels(places.reshape(values.shape).astype(np.uint16), -different)
        flat = values.ravel()
        ranks = rank_units(torch.from_numpy(flat), seed).numpy()
        level = np.searchsorted(_borders(len(flat), steps), ranks, side="right")
        count = np.bincount(level)
        mean = np.bincount(level, weights=flat.astype(np.float64)) / np.maximum(count, 1)
        return Levels(level.reshape(values.shape).astype(np.uint16), mean.astype(np.float32))

    def planes(self) -> NDArray[np.uint8]:
        """(h,w) the levels; with more than 256 of them (2h,w), the high bytes above the low bytes."""
        low = (self.level % 256).astype(np.uint8)
        return np.concatenate([low] if len(self.value) <= LEVELS else [(self.level // 256).astype(np.uint8), low])

    def text(self) -> str:
        """The planes: of a small map as base64 of their bytes, which a page reads at once, else as a data: URI of a PNG."""
        planes = self.planes()
        return as_text(planes.tobytes()) if planes.size <= SMALL else png_uri(gray_png(planes))


def _borders(units: int, steps: int | None) -> NDArray[np.int64]:
    """The ranks at which new levels begin: at every step of a protocol, and between them as often as levels allow."""
    if steps is None or steps > LEVELS:
        return np.rint(np.arange(1, LEVELS) * units / LEVELS).astype(np.int64)
    ends = np.rint(np.arange(steps + 1) * units / steps).astype(np.int64)
    parts = LEVELS // steps
    inner = [ends[:-1] + (ends[1:] - ends[:-1]) * part // parts for part in range(parts)]
    return np.unique(np.stack(inner))[1:]


def gray_png(picture: NDArray[np.uint8]) -> bytes:
    """(h,w) as a gray PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_uri(content: bytes) -> str:
    """A PNG as a data: URI."""
    return "data:image/png;base64," + as_text(content)


def as_text(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode()
