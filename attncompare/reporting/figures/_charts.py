"""What the charts share: the order of methods, the name of a panel, a legend below all panels."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncompare.metrics._base import metrics
from attncompare.reporting.figures._base import Venue
from attncompare.reporting.figures._words import line_height, width_of, wrapped
from attncompare.reporting.gallery import Gallery


def ranked(run: Gallery, model: str, measure: str) -> list[str]:
    """Methods from best to worst mean."""
    rows = run.summary[(run.summary.model == model) & (run.summary.measure == measure) & (run.summary.n > 0)]
    return list(rows.sort_values("mean", ascending=metrics.get(measure).better == "lower").method)


def arrow(measure: str) -> str:
    """Which way is better."""
    return "↓" if metrics.get(measure).better == "lower" else "↑"


def title(axes: Axes, text: str, width: float, size: float) -> None:
    """A panel's title, in as many lines as its width in inches asks for."""
    axes.set_title(wrapped(text, width, size), fontsize=size, linespacing=1.1, pad=3)


def legend_height(names: list[str], venue: Venue) -> float:
    """Inches that `legend_below` will take."""
    return math.ceil(len(names) / _columns(names, venue)) * line_height(venue.small) * 1.15 + 0.1


def label_left(figure: Figure, text: str, names: list[str], venue: Venue) -> None:
    """What the panels' y axes share, level with the middle of the panels rather than of the page with its legend."""
    figure.supylabel(text, fontsize=venue.font, y=(1 + legend_height(names, venue) / figure.get_figheight()) / 2)


def legend_below(figure: Figure, drawn: dict[str, Any], venue: Venue) -> None:
    """One legend for all panels, in as many columns as fit."""
    names = list(drawn)
    figure.legend(
        [drawn[name] for name in names],
        names,
        loc="outside lower center",
        ncols=_columns(names, venue),
        fontsize=venue.small,
        frameon=False,
        handlelength=2.4,
        columnspacing=1.0,
        handletextpad=0.5,
        labelspacing=0.25,
        borderaxespad=0.2,
    )


def _columns(names: list[str], venue: Venue) -> int:
    em = venue.small / 72
    return max(1, int((venue.width - 0.1) / (max(width_of(name, venue.small) for name in names) + 3.9 * em)))
