"""Pages of pictures: blocks of rows of cells under column heads, laid out in inches so that nothing can overlap."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attncompare.reporting.figures._base import SMALLEST, Venue
from attncompare.reporting.figures._words import fitted, line_height, width_of, wrapped

GAP, WIDE = 0.02, 0.08  # inches between pictures, and more between groups of them
SEEN = 0.42  # inches: below this the eye finds no object in a map
ABOVE = 0.06  # inches between a block and the title of the next
LARGEST = 1.5  # inches of a picture: a grid of three needs no posters


@dataclass(frozen=True)
class Cell:
    """picture: (H,W,3) uint8, or None for an empty place. caption: up to three lines in it, or why there is none."""

    picture: NDArray[np.uint8] | None
    caption: str = ""


@dataclass(frozen=True)
class Block:
    """Rows of cells. title: above; heads: over the columns; labels: at the left of the rows, or none.

    group: a wider gap stands after so many columns; 0 for none.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    labels: Sequence[str] = ()
    group: int = 0

    @property
    def gaps(self) -> int:
        """Wider gaps within a row."""
        return (self.columns - 1) // self.group if self.group else 0

    @property
    def columns(self) -> int:
        """Places in the widest row."""
        return max(len(self.heads), *(len(row) for row in self.rows))

    @property
    def aspect(self) -> float:
        """Height over width of the tallest picture."""
        pictures = [cell.picture for row in self.rows for cell in row if cell.picture is not None]
        return max((picture.shape[0] / picture.shape[1] for picture in pictures), default=1.0)


class _Page:
    """A figure that grows downward; places are in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure, self.width, self.height = Figure(figsize=(width, height)), width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        found: Axes = self.figure.add_axes(box)
        found.set_axis_off()
        return found

    def words(self, left: float, top: float, text: str, **look: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, text, **look)


def head_lines(name: str, cell: float, size: float) -> str | None:
    """A column's name in lines broken after / _ . or -, or None when a part of it is wider than a cell."""
    parts = re.split(r"(?<=[/_.\- ])", name)
    return wrapped(name, cell - GAP, size) if max(width_of(part, size) for part in parts) <= cell - GAP else None


def draw_blocks(venue: Venue, blocks: Sequence[Block], note: str = "") -> Figure:
    """Draw blocks under each other; cells are as wide as the venue's column allows. note: a line below all."""
    label = _label_width(venue, blocks)
    cell = _cell_size(venue, blocks, label)
    upright = all(head_lines(name, cell, SMALLEST) is not None for block in blocks for name in block.heads)
    words = [_Words(block, venue, cell, upright) for block in blocks]
    foot = wrapped(note, venue.width / 1.06, venue.small)  # a screen sets letters wider
    foot_height = line_height(venue.small) * len(foot.splitlines()) + 0.04 if foot else 0.0
    rows = [len(block.rows) * cell * block.aspect for block in blocks]
    top = -ABOVE if blocks[0].title else 0.0  # the first title needs no gap above it
    page = _Page(venue.width, top + sum(rows) + sum(one.height for one in words) + foot_height)
    for block, text, height in zip(blocks, words, rows, strict=True):
        text.draw(page, top, label)
        _draw_rows(page, block, top + text.height, (label, cell), venue)
        top += text.height + height
    if foot:
        page.words(0, top + 0.03, foot, ha="left", va="top", fontsize=venue.small, linespacing=1.2)
    return page.figure


def _label_width(venue: Venue, blocks: Sequence[Block]) -> float:
    widest = max([width_of(text, venue.small) for block in blocks for text in block.labels] or [0.0])
    return min(1.06 * widest, venue.width / 4) + 0.05 if widest else 0.0  # a screen sets letters wider


def _cell_size(venue: Venue, blocks: Sequence[Block], label: float) -> float:
    """Inches of a cell: what the width allows, less where the page would be too short, yet large enough to be seen."""
    across = min((venue.width - label - block.gaps * WIDE) / block.columns for block in blocks)
    down = 0.85 * venue.height / sum(len(block.rows) * block.aspect for block in blocks)
    return min(LARGEST, across, max(down, SEEN))


class _Words:
    """The title and the heads of a block, and the height they need."""

    def __init__(self, block: Block, venue: Venue, cell: float, upright: bool) -> None:
        self.block, self.venue, self.cell, self.upright = block, venue, cell, upright
        self.size = venue.small if upright and self._fit(venue.small) else SMALLEST
        self.title = wrapped(block.title, venue.width, venue.font, bold=True)
        self.title_height = (
            line_height(venue.font) * len(self.title.splitlines()) + 0.05 + ABOVE if self.title else 0.02
        )
        self.heads = [head_lines(name, cell, self.size) or name if upright else name for name in block.heads]
        lines = max((head.count("\n") + 1 for head in self.heads), default=0)
        across = max((width_of(name, self.size) for name in block.heads), default=0.0)
        self.heads_height = (line_height(self.size) * lines if upright else across) + (0.03 if block.heads else 0.0)
        self.height = self.title_height + self.heads_height

    def _fit(self, size: float) -> bool:
        return all(head_lines(name, self.cell, size) is not None for name in self.block.heads)

    def draw(self, page: _Page, top: float, label: float) -> None:
        look = {"fontsize": self.venue.font, "weight": "bold", "ha": "left", "va": "top", "linespacing": 1.2}
        if self.title:
            page.words(0, top + 0.02 + ABOVE, self.title, **look)
        below = top + self.height - 0.025
        for column, text in enumerate(self.heads):
            center = label + (column + 0.5) * self.cell
            if not self.upright:
                page.words(center, below, text, ha="center", va="bottom", fontsize=self.size, rotation=90)
                continue
            for number, line in enumerate(reversed(text.split("\n"))):  # by baselines, so that all heads stand level
                base = below - 0.02 - number * line_height(self.size)
                page.words(center, base, line, ha="center", va="baseline", fontsize=self.size)


def _draw_rows(page: _Page, block: Block, top: float, left_and_cell: tuple[float, float], venue: Venue) -> None:
    label, cell = left_and_cell
    height = cell * block.aspect
    for row, cells in enumerate(block.rows):
        place = top + row * height
        if block.labels:
            text = wrapped(block.labels[row], label - 0.05, venue.small)
            page.words(
                label - 0.04, place + height / 2, text, ha="right", va="center", fontsize=venue.small, linespacing=1.1
            )
        for column, one in enumerate(cells):
            wide = WIDE * (column // block.group) if block.group else 0.0
            axes = page.axes(label + column * cell + wide + GAP / 2, place + GAP / 2, cell - GAP, height - GAP)
            if one.picture is None:
                words = wrapped(one.caption, cell - 3 * GAP, SMALLEST)
                axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=SMALLEST, transform=axes.transAxes)
                continue
            axes.imshow(one.picture, interpolation="nearest" if min(one.picture.shape[:2]) < 100 else "antialiased")
            if one.caption:
                _caption(axes, one.caption, cell - 3 * GAP)


def _caption(axes: Axes, words: str, width: float) -> None:
    lines = [part for line in words.split("\n") for part in wrapped(line, width, SMALLEST).split("\n")]
    text = "\n".join(lines if len(lines) <= 3 else [*lines[:2], fitted("".join(lines[2:]), width, SMALLEST)])
    look: dict[str, Any] = {"fontsize": SMALLEST, "color": "white", "va": "bottom", "linespacing": 1.0}
    box = {"facecolor": "black", "alpha": 0.65, "pad": 0.8, "linewidth": 0}
    axes.text(0.03, 0.03, text, transform=axes.transAxes, bbox=box, **look)
