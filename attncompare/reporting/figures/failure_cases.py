"""The images on which methods, and architectures, disagree most."""

from itertools import chain

from matplotlib.figure import Figure

from attncompare.methods._base import methods
from attncompare.reporting.agreement import MapName, least_alike
from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._panels import Block, Cell, draw_blocks
from attncompare.reporting.figures.grid import map_cell
from attncompare.reporting.gallery import Gallery

CELL = 0.52  # inches: a method's name must fit into it
ROWS = 2
CHOSEN = "Chosen by the lowest rank correlation ρ of two maps of an image; controls take no part."


@figure_kind
def failure_cases(run: Gallery, venue: Venue) -> Figure:
    """The images on which two methods of a model, or two models under one method, agree least, and both their maps."""
    across = max(1, int(venue.width / CELL) // 3)
    blocks = []
    for model in run.models:
        names = [(model, name) for name in run.methods_of(model) if not methods.get(name).control]
        cases = list(least_alike(run, names))[: ROWS * across]
        cells = [_case(run, case, 1) for case in cases]
        if cells:
            blocks.append(Block(f"{model}: methods disagree", [], _rows(cells, across), group=3))
    cells = [_case(run, case, 0) for case in _between_models(run)[: ROWS * across]]
    if cells:
        blocks.append(Block("architectures disagree", [], _rows(cells, across), group=3))
    if not blocks:
        raise run.lacking("two saved maps to compare")
    return draw_blocks(venue, blocks, note=CHOSEN)


def _between_models(run: Gallery) -> list[tuple[float, str, MapName, MapName]]:
    """Every shared method's worst images, the worst first, no image twice."""
    shared = {name for model in run.models for name in run.methods_of(model) if not methods.get(name).control}
    cases = sorted(case for name in sorted(shared) for case in least_alike(run, [(m, name) for m in run.models]))
    seen: dict[str, tuple[float, str, MapName, MapName]] = {}
    for case in cases:
        seen.setdefault(case[1], case)
    return list(seen.values())


def _rows(cells: list[list[Cell]], across: int) -> list[list[Cell]]:
    return [list(chain(*cells[start : start + across])) for start in range(0, len(cells), across)]


def _case(run: Gallery, case: tuple[float, str, MapName, MapName], word: int) -> list[Cell]:
    """The image and both maps. word: whether a map is called by its model (0) or by its method (1)."""
    value, image, *both = case
    shared = "" if word == 1 else f"{both[0][1]}\n"
    picture = Cell(run.picture(both[0][0], image), f"{shared}ρ {value:.2f}".replace("-", "−"))
    return [picture, *(Cell(map_cell(run, *one, image).picture, _short(one[word])) for one in both)]


def _short(name: str) -> str:
    """A model's name without its source, which two lines of a small picture have no room for."""
    return name.split("/", 1)[-1]
