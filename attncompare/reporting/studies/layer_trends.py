"""Measures of the layers over depth, and how far the heads of transformers look."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncompare.errors import ResultFormatError
from attncompare.reporting.figures._base import styled, venue_of
from attncompare.reporting.figures._charts import legend_below, legend_height, title
from attncompare.reporting.figures._looks import COLORS, DASHES, MARKERS
from attncompare.reporting.figures._words import wrapped
from attncompare.studies.depth_trends import ATTENTION, COARSEST, DISTANCE, OWN, LayerTrends

WORDS = {
    "edges": "correlation with edges",
    "object": "share on the object over chance",
    "gini": "Gini index",
    "area_half": "area above half range",
    "entropy": "normalized entropy",
}
ROWS = {OWN: "own grids", COARSEST: "all on the coarsest grid"}


def trends_figure(found: LayerTrends, venue: str = "a4") -> Figure:
    """Mean of every measure over relative depth with its bootstrap 95 % interval: a panel per measure, a line per model.

    The class attention of a transformer's blocks has a line of its own. A second row of panels has all layers of a model
    averaged to its coarsest grid, so that no line there follows the resolution.

    >>> import attncompare as ac
    >>> found = ac.studies.layer_trends([ac.load_model("demo/vit")], "shapes", limit=3)
    >>> len(trends_figure(found).axes)
    5
    """
    page, means = venue_of(venue), found.means()
    means["model"] += means["map"].map({ATTENTION: ", class attention"}).fillna("")
    names = [measure for measure in WORDS if (means.measure == measure).any()]
    grids = [grid for grid in ROWS if (means.grid == grid).any()]
    models = list(dict.fromkeys(means.model))
    columns = len(names) if page.width > 5 else 2
    bands = [(grid, names[start : start + columns]) for grid in grids for start in range(0, len(names), columns)]
    with styled(page):
        height = 1.45 * len(bands) + legend_height(models, page) + 0.45
        figure = Figure(figsize=(page.width, height), layout="constrained")
        panels = figure.subplots(len(bands), columns, squeeze=False)
        drawn: dict[str, Any] = {}
        for row, (grid, shown) in enumerate(bands):
            for axes in panels[row][len(shown) :]:
                axes.set_visible(False)
            below = bands[row + 1][1] if row + 1 < len(bands) else []
            for column, (axes, measure) in enumerate(zip(panels[row], shown, strict=False)):
                drawn |= _lines(axes, means[(means.grid == grid) & (means.measure == measure)], models)
                title(axes, WORDS[measure], page.width / columns - 0.4, page.small)
                axes.set_xlim(-0.03, 1.03)
                axes.set_xticks([0, 1], ["", ""] if column < len(below) else ["first", "last layer"])
            panels[row][0].set_ylabel(ROWS[grid], fontsize=page.small)
        head = f"Layers over depth, {found.data} (n = {means.n.max()}): means with 95 % intervals"
        figure.suptitle(wrapped(head, page.width - 0.1, page.font), fontsize=page.font)
        legend_below(figure, {name: drawn[name] for name in models}, page)
        return figure


def _lines(axes: Axes, means: pd.DataFrame, models: list[str]) -> dict[str, Any]:
    """One line and band per model."""
    drawn = {}
    for model, rows in means.groupby("model", sort=False):
        rows, number = rows.sort_values("depth"), models.index(str(model))
        x = np.linspace(0, 1, len(rows)) if len(rows) > 1 else np.array([0.5])
        color = COLORS[number % len(COLORS)]
        axes.fill_between(x, rows.low, rows.high, color=color, alpha=0.2, linewidth=0)
        look = {"color": color, "linestyle": DASHES[number % len(DASHES)], "marker": MARKERS[number % len(MARKERS)]}
        drawn[str(model)] = axes.plot(x, rows["mean"], markersize=2.5, **look)[0]
    if (means.measure == "object").any():
        axes.axhline(1, color="0.5", linewidth=0.6, linestyle=":")
    if (means.measure == "edges").any():
        axes.axhline(0, color="0.5", linewidth=0.6, linestyle=":")
    return drawn


def distance_figure(found: LayerTrends, venue: str = "a4") -> Figure:
    """Mean attention distance in pixels: blocks on x, a dot per head, a line through the means of the blocks.

    Raises ResultFormatError where no model has global attention between patches.

    >>> import attncompare as ac
    >>> found = ac.studies.layer_trends(ac.load_model("demo/vit"), "shapes", limit=3)
    >>> len(distance_figure(found).axes)
    1
    """
    if found.heads.empty:
        raise ResultFormatError(f"no model has global attention between patches, so there is no {DISTANCE}")
    page, models = venue_of(venue), list(dict.fromkeys(found.heads.model))
    with styled(page):
        page = replace(page, width=min(page.width, 4.5 * len(models)))
        figure = Figure(figsize=(page.width, 2.3), layout="constrained")
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        drawn: dict[str, Any] = {}
        for axes, model in zip(panels, models, strict=True):
            rows = found.heads[found.heads.model == model]
            drawn["one head"] = axes.plot(rows.depth, rows["mean"], "o", color=COLORS[0], markersize=3, alpha=0.7)[0]
            mean = rows.groupby("depth")["mean"].mean()
            drawn["mean of the heads"] = axes.plot(mean.index, mean, color="black", linewidth=0.9)[0]
            drawn["attention to all patches alike"] = axes.axhline(
                rows.uniform.iloc[0], color="0.5", linewidth=0.8, linestyle="--"
            )
            title(axes, f"{model} on {found.data}, n = {rows.n.max()}", page.width / len(models) - 0.4, page.font)
            axes.set_xticks(sorted(set(rows.depth)))
            axes.set_ylim(bottom=0)
            axes.set_xlabel("block")
        panels[0].set_ylabel("attention distance (pixels)")
        legend_below(figure, drawn, page)
        return figure
