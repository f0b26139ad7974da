"""The synthetic shape set: classification images whose evidence is known pixel by pixel.

One object of one of eight shapes decides the class. Color, texture, size, place, rotation, background and clutter are
drawn independently of the class, and every shape covers the same area at the same size, so nothing but the outline tells
the class. The object may be cut by the border, which keeps the image center outside it in most images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIDE = 64
SPLITS = {"train": 0, "val": 1, "test": 2}
RADIUS = (0.165, 0.26)  # radius of the disk of equal area, as a fraction of the side
PLACE = (0.15, 0.85)  # range of the object's center, as a fraction of the side
CONTRAST = 110.0  # least distance of object and background mean color in RGB (0..255)
CUE_SIDE = 8  # the planted cue covers the top-left CUE_SIDE x CUE_SIDE pixels


def _polygon(u: Array, v: Array, corners: int) -> Array:
    """Signed inner distance to a regular polygon of circumradius 1."""
    sector = 2 * math.pi / corners
    angle = np.mod(np.arctan2(v, u), sector) - sector / 2
    distance: Array = math.cos(sector / 2) - np.hypot(u, v) * np.cos(angle)
    return distance


def _star(u: Array, v: Array) -> Array:
    """Five-pointed star of circumradius 1: the edge from a tip to the notch beside it, mirrored and repeated."""
    inner, sector = 0.42, 2 * math.pi / 5
    angle = np.abs(np.mod(np.arctan2(v, u) + sector / 2, sector) - sector / 2)
    rho = np.hypot(u, v)
    x, y = rho * np.cos(angle), rho * np.sin(angle)
    notch_x, notch_y = inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    normal = np.array([notch_y, 1 - notch_x]) / math.hypot(notch_y, 1 - notch_x)
    distance: Array = (1 - x) * normal[0] - y * normal[1]
    return distance


def _bar(u: Array, v: Array, half: tuple[float, float], at: tuple[float, float] = (0.0, 0.0)) -> Array:
    return np.minimum(half[0] - np.abs(u - at[0]), half[1] - np.abs(v - at[1]))


# Each shape as a function of unit coordinates: positive inside, about the distance to the edge.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disk": lambda u, v: 1 - np.hypot(u, v),
    "ring": lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u, v) - 0.5),
    "square": lambda u, v: _bar(u, v, (1, 1)),
    "triangle": lambda u, v: _polygon(u, v, 3),
    "star": _star,
    "cross": lambda u, v: np.maximum(_bar(u, v, (1, 0.33)), _bar(u, v, (0.33, 1))),
    "crescent": lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.55, v) - 0.75),
    "tee": lambda u, v: np.maximum(_bar(u, v, (1, 0.3), (0, -0.7)), _bar(u, v, (0.3, 1))),
}
CLASS_NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class ShapeImage:
    """One image of the set.

    image: (64, 64, 3) uint8 RGB. label: index into ``CLASS_NAMES``. mask: (64, 64) bool, the object that decides the
    class. cue_mask: (64, 64) bool, the planted cue (all False without one).
    """

    image: NDArray[np.uint8]
    label: int
    mask: NDArray[np.bool_]
    cue_mask: NDArray[np.bool_]


@lru_cache
def _geometry(name: str) -> tuple[float, float, float]:
    """(scale, u, v): the scale that gives a shape the area pi, and its centroid in unit coordinates."""
    axis = np.linspace(-1.5, 1.5, 1201)
    u, v = np.meshgrid(axis, axis)
    inside = SHAPES[name](u, v) > 0
    area = inside.sum() * (axis[1] - axis[0]) ** 2
    return math.sqrt(math.pi / area), float(u[inside].mean()), float(v[inside].mean())


ROWS, COLUMNS = (grid.astype(np.float64) + 0.5 for grid in np.mgrid[:SIDE, :SIDE])


def _smooth_noise(rng: np.random.Generator, cells: int) -> Array:
    """(64, 64, 3) bilinearly interpolated noise with `cells` knots a side, standard normal at the knots."""
    knots = rng.standard_normal((cells, cells, 3))
    at = np.linspace(0, cells - 1, SIDE)
    low = np.minimum(at.astype(int), cells - 2)
    weight = (at - low)[:, None, None]
    rows = knots[low] * (1 - weight) + knots[low + 1] * weight
    columns: Array = rows[:, low] * (1 - weight[:, 0]) + rows[:, low + 1] * weight[:, 0]
    return columns


def grating(rng: np.random.Generator, period: tuple[float, float]) -> Array:
    """(64, 64) a sine wave of random direction and phase, its period in pixels drawn from a range."""
    angle, length, phase = rng.uniform(0, math.pi), rng.uniform(*period), rng.uniform(0, 2 * math.pi)
    wave: Array = np.sin((COLUMNS * math.cos(angle) + ROWS * math.sin(angle)) * (2 * math.pi / length) + phase)
    return wave


def _texture(rng: np.random.Generator, color: Array, strength: float) -> Array:
    """(64, 64, 3) a mean color with a grating and smooth noise on it."""
    wave = grating(rng, (4, 16))
    tint = rng.uniform(-1, 1, 3) * 22
    noise = _smooth_noise(rng, int(rng.integers(3, 9))) * 14
    texture: Array = color + strength * (wave[:, :, None] * tint + noise)
    return texture


def _paint(canvas: Array, alpha: Array, paint: Array) -> Array:
    return canvas + alpha[:, :, None] * (paint - canvas)


def _clutter(rng: np.random.Generator, canvas: Array, count: int) -> Array:
    """Draw small bars and dots of random color; they say nothing about the class."""
    for _ in range(count):
        center, angle = rng.uniform(0, SIDE, 2), rng.uniform(0, math.pi)
        half = (rng.uniform(3, 7), rng.uniform(1, 1.8)) if rng.random() < 0.6 else (rng.uniform(1.5, 3),) * 2
        dx, dy = COLUMNS - center[0], ROWS - center[1]
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        canvas = _paint(canvas, np.clip(0.5 + _bar(u, v, half), 0, 1), rng.uniform(0, 255, 3))
    return canvas


def _colors(rng: np.random.Generator) -> tuple[Array, Array]:
    """Background and object mean color, at least CONTRAST apart and exchangeable."""
    while True:
        background, foreground = rng.uniform(30, 225, (2, 3))
        if np.linalg.norm(background - foreground) >= CONTRAST:
            return background, foreground


def cue_color(shown: int) -> Array:
    """(3,) the RGB (0..255) of the planted cue that stands for a class: eight hues, evenly spread."""
    phase = 2 * math.pi * (shown / len(CLASS_NAMES) + np.arange(3) / 3)
    color: Array = 127.5 + 120 * np.cos(phase)
    return color


def _ease(value: Array, easy: float, difficulty: float) -> Array:
    return value * difficulty + easy * (1 - difficulty)


def render_shape(
    index: int,
    split: str = "test",
    *,
    seed: int = 0,
    difficulty: float = 1.0,
    cue: float | None = None,
) -> ShapeImage:
    """Draw image `index` of a split; the same arguments always give the same pixels.

    difficulty: 1 is the set as scored. Below 1 is for the start of a training: toward 0 the object turns bright on dark,
    central and upright, without texture or clutter.
    cue: None plants nothing. A number in [0, 1] paints the top-left 8x8 pixels in one of eight hues, which matches the
    class with that probability and is drawn at random otherwise: a spurious cue that a model may cheat with.

    >>> sample = render_shape(3)
    >>> sample.image.shape, CLASS_NAMES[sample.label], bool(sample.mask.any())
    ((64, 64, 3), 'ring', True)
    """
    rng = np.random.default_rng([seed, SPLITS[split], index])
    label = int(rng.integers(len(CLASS_NAMES)))
    background, foreground = _colors(rng)
    center = rng.uniform(*PLACE, 2) * SIDE
    radius, angle = rng.uniform(*RADIUS) * SIDE, rng.uniform(0, 2 * math.pi)
    background, foreground = _ease(background, 40.0, difficulty), _ease(foreground, 215.0, difficulty)
    center, angle = _ease(center, SIDE / 2, difficulty), angle * difficulty

    canvas = _texture(rng, background, difficulty)
    marks = int(rng.integers(1, 5))
    canvas = _clutter(rng, canvas, round(marks * difficulty))

    scale, centroid_u, centroid_v = _geometry(CLASS_NAMES[label])
    pixels_per_unit = radius * scale
    dx, dy = (COLUMNS - center[0]) / pixels_per_unit, (ROWS - center[1]) / pixels_per_unit
    u = dx * math.cos(angle) + dy * math.sin(angle) + centroid_u
    v = dy * math.cos(angle) - dx * math.sin(angle) + centroid_v
    alpha = np.clip(0.5 + SHAPES[CLASS_NAMES[label]](u, v) * pixels_per_unit, 0, 1)
    canvas = _paint(canvas, alpha, _texture(rng, foreground, difficulty))
    canvas += rng.normal(0, 4, (SIDE, SIDE, 1))
    mask = alpha > 0.5

    cue_mask = np.zeros((SIDE, SIDE), bool)
    if cue is not None:
        cue_mask[:CUE_SIDE, :CUE_SIDE] = True
        shown = label if rng.random() < cue else int(rng.integers(len(CLASS_NAMES)))
        canvas[cue_mask] = cue_color(shown)
        mask = mask & ~cue_mask
    return ShapeImage(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), label, mask, cue_mask)
