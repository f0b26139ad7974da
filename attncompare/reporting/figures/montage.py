"""One image across architectures."""

from matplotlib.figure import Figure

from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._looks import controls_last
from attncompare.reporting.figures._panels import SEEN, Block, Cell, draw_blocks
from attncompare.reporting.figures.grid import even_parts, map_cell
from attncompare.reporting.gallery import Gallery

MISSING = "–"


@figure_kind
def montage(run: Gallery, venue: Venue) -> Figure:
    """One image (the first, unless one is chosen) as every architecture sees it: a row per model, a column per method."""
    if not run.images:
        raise run.lacking("saved maps")
    image, models = run.images[0], [model for model in run.models if run.methods_of(model)]
    names = controls_last(name for model in models for name in run.methods_of(model))
    pictures = [Cell(run.picture(model, image), run.explained_class(model, image).split(",")[0]) for model in models]
    bands = even_parts(names, max(1, int(0.75 * venue.width / SEEN) - 1))
    blocks = []
    for band in bands:
        rows = [
            [first, *(_cell(run, model, name, image) for name in band)]
            for model, first in zip(models, pictures, strict=True)
        ]
        blocks.append(Block(image if band is bands[0] else "", ["image", *band], rows, models))
    lacking = any(cell.caption == MISSING for block in blocks for row in block.rows for cell in row)
    return draw_blocks(venue, blocks, "–: the model lacks what the method needs" if lacking else "")


def _cell(run: Gallery, model: str, method: str, image: str) -> Cell:
    return map_cell(run, model, method, image) if method in run.methods_of(model) else Cell(None, MISSING)
