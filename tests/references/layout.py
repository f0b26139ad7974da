"""What a reader would complain about in a figure: words that leave the page, and words over words."""

from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SLACK = 0.01  # inches: what antialiasing adds around a glyph


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that a renderer really draws, with its extent in inches."""
    seen: list[Text] = []
    original = Text.draw

    def draw_and_note(self: Text, renderer: object, *rest: object, **more: object) -> None:
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        original(self, renderer, *rest, **more)

    figure.set_dpi(300)  # as PNGs are written; at fewer dots hinting widens small words
    figure.draw_without_rendering()  # lays the panels out
    try:
        Text.draw = draw_and_note
        figure.draw_without_rendering()
    finally:
        Text.draw = original
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [(text.get_text(), extent(text, renderer, figure.dpi)) for text in dict.fromkeys(seen)]


def extent(text: Text, renderer: object, dpi: float) -> Bbox:
    patch = text.get_bbox_patch()
    box = text.get_window_extent(renderer) if patch is None else patch.get_window_extent(renderer)
    return Bbox(box.get_points() / dpi)


def faults(figure: Figure) -> list[str]:
    """What a reader would complain about: words that leave the page, and words over words."""
    width, height = figure.get_size_inches()
    found, texts = [], drawn_texts(figure)
    for words, box in texts:
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            found.append(f"{words!r} leaves the page: {np.round(box.extents, 2)}")
    for (one, first), (other, second) in combinations(texts, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        if across > SLACK and down > SLACK:
            found.append(f"{one!r} lies over {other!r}")
    return found
