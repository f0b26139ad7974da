"""Mean and interval of every metric."""

import numpy as np
from matplotlib.figure import Figure

from attncompare.errors import ResultFormatError
from attncompare.methods._base import methods
from attncompare.reporting.figures._base import SMALLEST, Venue, figure_kind
from attncompare.reporting.figures._charts import arrow, ranked
from attncompare.reporting.figures._looks import COLORS
from attncompare.reporting.figures._words import line_height, width_of, wrapped
from attncompare.reporting.figures.grid import even_parts
from attncompare.reporting.gallery import Gallery

NARROWEST = 0.62  # inches of a panel


@figure_kind
def bars(run: Gallery, venue: Venue) -> Figure:
    """Mean and bootstrap 95 % interval of every metric; methods are ordered by the first metric, controls are hatched."""
    names = run.metric_names()
    if not names:
        raise ResultFormatError(f"{run.folder} has no metric values; add metrics")
    orders = {model: _order(run, model, names) for model in run.models}
    left = max(width_of(name, SMALLEST) for order in orders.values() for name in order) + 0.12
    room = max(1, int((venue.width - left) / NARROWEST))
    bands = even_parts(names, room)
    room = len(bands[0])
    parts = [(model, band) for model in run.models for band in bands]
    heights = [
        line_height(SMALLEST) * 1.25 * len(orders[model]) + (0.62 if band is bands[0] else 0.42)
        for model, band in parts
    ]
    figure = Figure(figsize=(venue.width, sum(heights)), layout="constrained")
    for part, (model, band) in zip(_stacked(figure, heights), parts, strict=True):
        if band is bands[0]:
            head = wrapped(model, venue.width, venue.font, bold=True)
            part.suptitle(head, fontsize=venue.font, weight="bold", x=0.01, ha="left")
        panels = part.subplots(1, room, squeeze=False, sharey=True)[0]
        for axes in panels[len(band) :]:
            axes.set_visible(False)
        for axes, name in zip(panels, band, strict=False):
            _panel(axes, run, (model, name), orders[model])
            head = f"{name} {arrow(name)}"
            axes.set_title(wrapped(head, (venue.width - left) / room - 0.08, venue.small), fontsize=venue.small, pad=2)
    return figure


def _stacked(figure: Figure, heights: list[float]) -> list[Figure]:
    return list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def _order(run: Gallery, model: str, names: list[str]) -> list[str]:
    """From the worst, drawn at the bottom, to the best; those that lack the first metric come last."""
    order: list[str] = []
    for name in names:
        order += [method for method in ranked(run, model, name) if method not in order]
    return order[::-1]


def _panel(axes, run: Gallery, owner: tuple[str, str], order: list[str]) -> None:  # type: ignore[no-untyped-def]
    model, name = owner
    rows = run.summary[(run.summary.model == model) & (run.summary.measure == name) & (run.summary.n > 0)]
    rows = rows.set_index("method").reindex(order)
    places = np.arange(len(order))
    bodies = axes.barh(places, rows["mean"], color=COLORS[3], height=0.72, linewidth=0)
    for body, method in zip(bodies, order, strict=True):
        if methods.get(method).control:
            body.set(facecolor="0.85", hatch="//////", edgecolor="0.5")
    axes.hlines(places, rows["low"], rows["high"], color="black", linewidth=0.8)
    axes.plot(rows["mean"], places, "k.", markersize=2.5, markeredgewidth=0, clip_on=False)  # a mean of 0 has no bar
    for place in places[rows["mean"].isna()]:
        axes.annotate("–", (0, place), (3, 0), textcoords="offset points", va="center", fontsize=SMALLEST)
    axes.set_yticks(places, order, fontsize=SMALLEST)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SMALLEST)
    axes.locator_params(axis="x", nbins=3)
    axes.axvline(0, color="black", linewidth=0.5)
