"""Images x methods, one block per model."""

from typing import TypeVar

from matplotlib.figure import Figure

from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._panels import SEEN, Block, Cell, draw_blocks
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.overlay import overlay

T = TypeVar("T")
MOST_IMAGES = 4


@figure_kind
def grid(run: Gallery, venue: Venue) -> Figure:
    """The same images as every model and every method sees them: images x methods, a block per model.

    Methods that do not fit beside each other go on in further rows; as many images are shown as a page takes, the first
    in the order of their names.
    """
    shown = {model: run.methods_of(model) for model in run.models}
    shown = {model: names for model, names in shown.items() if names}
    if not shown:
        raise run.lacking("saved maps")
    room = int(venue.width / SEEN) - 1
    bands = {model: even_parts(names, room) for model, names in shown.items()}
    columns = 1 + max(len(part) for parts in bands.values() for part in parts)
    rows = sum(len(parts) for parts in bands.values())
    heads = sum(0.35 * len(parts) + 0.2 for parts in bands.values())
    count = max(1, min(MOST_IMAGES, int((venue.height - heads) / (rows * venue.width / columns))))
    images = run.images[:count]
    blocks = [
        Block(model if first else "", ["image", *part], [_row(run, model, image, part) for image in images])
        for model, parts in bands.items()
        for first, part in [(part is parts[0], part) for part in parts]
    ]
    return draw_blocks(venue, blocks)


def even_parts(names: list[T], room: int) -> list[list[T]]:
    """Names in as few parts of at most `room` as it takes, of nearly equal length.

    >>> even_parts(list("abcde"), 4)
    [['a', 'b', 'c'], ['d', 'e']]
    """
    parts = -(-len(names) // room)
    size = -(-len(names) // parts)
    return [names[start : start + size] for start in range(0, len(names), size)]


def _row(run: Gallery, model: str, image: str, names: list[str]) -> list[Cell]:
    found = [map_cell(run, model, name, image) for name in names]
    if all(cell.picture is None for cell in found):
        return [Cell(None, "no picture"), *found]
    return [Cell(run.picture(model, image), run.explained_class(model, image).split(",")[0]), *found]


def map_cell(run: Gallery, model: str, method: str, image: str) -> Cell:
    """One map over its picture, or the word for why there is none."""
    values = run.map(model, method, image)
    return Cell(None, "failed") if values is None else Cell(overlay(run.picture(model, image), values))
