"""Inside the models: blocks x heads, stages x strongest channels."""

from matplotlib.figure import Figure

from attncompare.benchmark.layer_maps import LayerMap, LayerMaps, evenly
from attncompare.errors import ResultFormatError
from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._panels import SEEN, Block, Cell, draw_blocks
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.overlay import overlay


@figure_kind
def layers(run: Gallery, venue: Venue) -> Figure:
    """One image inside every model: blocks x heads of a transformer, stages x strongest channels of a CNN.

    The first image unless one is chosen; deep models show evenly spaced blocks, and as many heads as the width takes.
    """
    saved = LayerMaps.open(run.folder, dict.fromkeys(run.records["key"]))
    image = next((name for name in run.images if any(saved.of(model, name) for model in run.models)), None)
    if image is None:
        raise ResultFormatError(f"{run.folder} has no maps of layers; run the benchmark with --save-maps")
    across = max(2, int(0.75 * venue.width / SEEN))
    shown = [model for model in run.models if saved.of(model, image)]
    most = max(2, int(0.8 * venue.height / SEEN) // len(shown))
    blocks = [_block(run, model, image, evenly(saved.of(model, image), most), across) for model in shown]
    return draw_blocks(
        venue, blocks, note=f"{image}. Heads are numbered from 0; channels are the strongest of a stage."
    )


def _block(run: Gallery, model: str, image: str, found: list[LayerMap], across: int) -> Block:
    picture = run.picture(model, image)
    rows = [
        [
            Cell(overlay(picture, values), f"{one.kind} {number}")
            for number, values in zip(one.index, one.maps, strict=True)
        ]
        for one in found
    ]
    return Block(f"{model}: {_what(found)}", [], [row[:across] for row in rows], [one.layer for one in found])


def _what(found: list[LayerMap]) -> str:
    words = {"head": "blocks x heads", "channel": "stages x strongest channels"}
    return ", ".join(words[kind] for kind in dict.fromkeys(one.kind for one in found))
