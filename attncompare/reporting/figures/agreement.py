"""How far methods, and architectures, agree."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from attncompare.methods._base import methods
from attncompare.reporting.agreement import method_agreement, model_agreement
from attncompare.reporting.figures._base import SMALLEST, Venue, figure_kind, only
from attncompare.reporting.figures._words import line_height, width_of, wrapped
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.overlay import DIVERGING

BAR = 0.42  # inches of the color bar with its words
WRAP = 1.05  # inches of a line of a name


@figure_kind
def agreement(run: Gallery, venue: Venue) -> Figure:
    """Mean rank correlation of maps: methods x methods for every model, and architectures by the methods they share."""
    tables = {model: method_agreement(run, model) for model in run.models if len(run.methods_of(model)) > 1}
    if not tables:
        raise run.lacking("two saved maps to compare")
    if len(run.models) > 1:
        real = sorted({name for model in run.models for name in run.methods_of(model) if not methods.get(name).control})
        tables["architectures"] = model_agreement(only(run, methods=real))
    names = {str(name) for table in tables.values() for name in table.index}
    label = min(WRAP, max(width_of(name, SMALLEST) for name in names)) + 0.06
    title = line_height(venue.font) * 2 + 0.06
    columns, side = _layout([len(table) for table in tables.values()], label, title, venue)
    sides = [min(side, 0.6 * len(table)) for table in tables.values()]
    tall, rows = title + side + label, -(-len(tables) // columns)
    height = tall * rows - side + max(sides[(rows - 1) * columns :])  # the last row may be of small ones
    figure = Figure(figsize=(venue.width, height))
    for number, (name, table) in enumerate(tables.items()):
        row, column = divmod(number, columns)
        left, top = column * (label + side + 0.05) + label, row * tall + title
        own = sides[number]
        box = left / venue.width, 1 - (top + own) / height, own / venue.width, own / height
        axes = figure.add_axes(box)
        _matrix(axes, table, own)
        head = wrapped(name, label + side, venue.font)
        at = (left - label + 0.02) / venue.width, 1 - (top - 0.04) / height
        figure.text(*at, head, ha="left", va="bottom", fontsize=venue.font)
    _color_bar(figure, venue, (title, sides[0], height))
    return figure


def _layout(sizes: list[int], label: float, title: float, venue: Venue) -> tuple[int, float]:
    """Columns of matrices and inches of a matrix: as large as the page allows, yet with room for the names of its rows."""
    least = max(0.9, max(sizes) * line_height(SMALLEST) * 1.05)
    most = max(1, min(len(sizes), int((venue.width - BAR) / (label + least + 0.05))))
    for columns in range(1, most + 1):
        side = min((venue.width - BAR) / columns - label - 0.05, 3.0)
        if (title + side + label) * -(-len(sizes) // columns) <= venue.height:
            break
    return columns, side


def _matrix(axes: Axes, table: pd.DataFrame, side: float) -> None:
    axes.imshow(table.to_numpy(), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    places = range(len(table))
    names = [wrapped(str(name), WRAP, SMALLEST) for name in table.index]
    axes.set_xticks(places, names, rotation=90, fontsize=SMALLEST, linespacing=1.0)
    axes.set_yticks(places, names, fontsize=SMALLEST, linespacing=1.0)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    room = side / len(table) >= 0.19  # for a number; without one a minus keeps the sign where the print has no color
    values = table.to_numpy(dtype=np.float64)
    for row in places:
        for column in places:
            value = float(values[row, column])
            number = "–" if np.isnan(value) else f"{value:.2f}".replace("0.", ".").replace("-", "−")
            text = number if room else "−" * (value < -0.05)
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALLEST, color=color)


def _color_bar(figure: Figure, venue: Venue, place: tuple[float, float, float]) -> None:
    top, side, height = place
    axes = figure.add_axes(
        (1 - (BAR - 0.06) / venue.width, 1 - (top + side) / height, 0.06 / venue.width, side / height)
    )
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), colormaps[DIVERGING]), cax=axes, ticks=[-1, 0, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALLEST, length=0, pad=1)
    bar.set_label("mean rank correlation", fontsize=SMALLEST, labelpad=0)
