"""Pictures of concepts for the shape set: a texture that says nothing of the class, and parts that belong to one class.

A concept is painted into ordinary pictures of the set, so that it and a random set differ in the concept alone.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from attncompare.data.shapes import CLASS_NAMES, COLUMNS, ROWS, SHAPES, SIDE, Array, grating, render_shape
from attncompare.errors import SpecError, unknown_name

PARTS: dict[str, tuple[str, float]] = {"arcs": ("ring", 0.15), "tips": ("star", 0.37), "arms": ("cross", 0.4)}
"""Concept -> the class whose part it is, and where the shape is cut off: what lies beyond, in its own unit, is the part."""

CONCEPTS = ("stripes", *PARTS)
COPIES = 4  # of a part in a picture
UNIT = (14.0, 20.0)  # pixels of a part's unit length, about that of the objects
STRIPES, PERIOD = 45.0, (4.0, 8.0)  # amplitude (0..255) and pixels of a grating: stronger and finer than the set's own


def _stripes(rng: np.random.Generator, canvas: Array) -> Array:
    """A strong grating over the whole picture, of random direction, period and color."""
    striped: Array = canvas + STRIPES * grating(rng, PERIOD)[:, :, None] * rng.choice([-1.0, 1.0], 3)
    return striped


def _parts(shape: str, cut: float) -> Callable[[np.random.Generator, Array], Array]:
    """Copies of a part of a shape, at random places, in random colors."""

    def paint(rng: np.random.Generator, canvas: Array) -> Array:
        for _ in range(COPIES):
            center, angle, unit = rng.uniform(0.15, 0.85, 2) * SIDE, rng.uniform(0, 2 * math.pi), rng.uniform(*UNIT)
            dx, dy = (COLUMNS - center[0]) / unit, (ROWS - center[1]) / unit
            u, v = dx * math.cos(angle) + dy * math.sin(angle) + cut, dy * math.cos(angle) - dx * math.sin(angle)
            inside = np.minimum(SHAPES[shape](u, v), u - cut)
            alpha = np.clip(0.5 + inside * unit, 0, 1)[:, :, None]
            canvas = canvas + alpha * (rng.uniform(0, 255, 3) - canvas)
        return canvas

    return paint


_PAINT = {"stripes": _stripes, **{name: _parts(*part) for name, part in PARTS.items()}}


def add_concept(picture: NDArray[np.uint8], concept: str, seed: int) -> NDArray[np.uint8]:
    """A picture (64, 64, 3) of the set with a concept painted into it; the same seed always paints the same.

    >>> plain = render_shape(0).image
    >>> bool((add_concept(plain, "tips", 1) != plain).any())
    True
    """
    if concept not in _PAINT:
        raise unknown_name("concept of the shape set", concept, CONCEPTS)
    rng = np.random.default_rng([seed, CONCEPTS.index(concept)])
    painted = np.rint(_PAINT[concept](rng, picture.astype(np.float64)))
    return np.asarray(np.clip(painted, 0, 255), dtype=np.uint8)


def concept_pictures(
    concept: str | None, count: int, *, without: str | None = None, start: int = 0
) -> list[NDArray[np.uint8]]:
    """So many pictures (64, 64, 3) of a concept, or of none: those of the validation split from index `start` on.

    without: a class that does not occur in them, that which will be asked about.

    >>> len(concept_pictures("stripes", 3, without="star"))
    3
    """
    if without is not None and without not in CLASS_NAMES:
        raise SpecError(f"the shape set has no class {without!r}; its classes are {', '.join(CLASS_NAMES)}")
    found: list[NDArray[np.uint8]] = []
    index = start
    while len(found) < count:
        drawn = render_shape(index, "val")
        if CLASS_NAMES[drawn.label] != without:
            found.append(drawn.image if concept is None else add_concept(drawn.image, concept, index))
        index += 1
    return found
