"""Quality against what a map costs."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator

from attncompare.errors import ResultFormatError
from attncompare.methods._base import methods
from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._charts import arrow, label_left, legend_below, legend_height, title
from attncompare.reporting.figures._looks import looks
from attncompare.reporting.findings import pareto_front
from attncompare.reporting.gallery import Gallery

COSTS = {"latency_median": "latency (ms, log)", "passes": "passes per image (log)"}
PANEL = 1.2  # inches that hold the name of an axis


@figure_kind
def cost(run: Gallery, venue: Venue) -> Figure:
    """Quality (the run's first metric) against latency and passes; a line joins the methods that nothing cheaper beats.

    Controls, which know nothing of the model, are drawn and never on the line.
    """
    names = run.metric_names()
    if not names or not run.measures(["latency_median"]):
        raise ResultFormatError(f"{run.folder} has no timing beside its scores; run it with timing")
    tables = {model: _costs(run, model, names[0]) for model in run.models}
    shown = looks(name for table in tables.values() for name in table.index)
    across = venue.width / len(tables) >= PANEL and venue.width >= 5
    grid = (len(COSTS), len(tables)) if across else (len(tables), len(COSTS))
    height = grid[0] * (1.45 if across else 1.15) + legend_height(list(shown), venue) + 0.15
    figure = Figure(figsize=(venue.width, height), layout="constrained")
    panels = figure.subplots(*grid, squeeze=False, sharey=True, sharex="row" if across else "col")
    panels = panels if across else panels.T
    drawn: dict[str, Any] = {}
    for row, (measure, words) in enumerate(COSTS.items()):
        for column, (model, table) in enumerate(tables.items()):
            axes = panels[row][column]
            drawn |= _panel(axes, table[[measure, names[0]]], shown)
            if row == 0 or not across:
                title(axes, model, (venue.width - 0.5) / grid[1], venue.font)
            if across or column == len(tables) - 1:
                axes.set_xlabel(words)
    label_left(figure, f"{names[0]} {arrow(names[0])}", list(shown), venue)
    legend_below(figure, {name: drawn[name] for name in shown if name in drawn}, venue)
    return figure


def _costs(run: Gallery, model: str, quality: str) -> pd.DataFrame:
    """(method x measure) means: the quality, latency in ms, and passes of both directions together."""
    table = run.summary[(run.summary.model == model) & (run.summary.n > 0)]
    table = table.pivot_table(index="method", columns="measure", values="mean")
    table = table.reindex(columns=[quality, "latency_median", "passes_forward", "passes_backward"]).dropna()
    return table.assign(latency_median=table.latency_median * 1e3, passes=table.passes_forward + table.passes_backward)


def _panel(axes: Axes, table: pd.DataFrame, shown: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cost, score = (table.iloc[:, column].to_numpy(dtype=np.float64) for column in (0, 1))
    controls = [name for name in table.index if methods.get(str(name)).control]
    points = pareto_front(table.drop(index=controls), *map(str, table.columns))
    front = table.loc[[name for point in points for name in point]].to_numpy(dtype=np.float64)
    axes.plot(*front.T, color="0.6", linewidth=0.8, drawstyle="steps-post", zorder=1)
    drawn: dict[str, Any] = {}
    for name, x, y in zip(map(str, table.index), cost, score, strict=True):
        look = {key: value for key, value in shown[name].items() if key != "linestyle"}
        drawn[name] = axes.plot(x, y, linestyle="none", markersize=4, markeredgewidth=0.7, **look)[0]
    _log_axis(axes, cost)
    return drawn


def _log_axis(axes: Axes, cost: np.ndarray) -> None:
    """Plain numbers, few enough for a narrow panel; a control may take no pass at all, so the axis may begin at 0."""
    if (cost == 0).any():
        axes.set_xscale("symlog", linthresh=1)
        steps = (1, 2, 5) if cost.max() <= 10 else (1,)
        locator: Locator = FixedLocator([0, *(step * 10.0**power for power in range(7) for step in steps)])
    else:
        axes.set_xscale("log")
        locator = LogLocator(subs=(1,) if cost.max() / cost.min() > 8 else (1, 2, 5), numticks=4)
    axes.margins(0.1)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
