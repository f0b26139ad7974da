"""Mean perturbation curves with confidence bands."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncompare.benchmark.statistics import mean_band
from attncompare.errors import ResultFormatError
from attncompare.methods._base import methods
from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._charts import label_left, legend_below, legend_height, ranked, title
from attncompare.reporting.figures._looks import looks
from attncompare.reporting.gallery import Gallery

BEST = 5  # curves of more methods cannot be told apart
CHANGES = {"deletion": "removed", "insertion": "inserted", "morf": "removed", "lerf": "removed"}


@figure_kind
def curves(run: Gallery, venue: Venue) -> Figure:
    """Mean score while pixels are removed or inserted, with bootstrap 95 % bands: the five best methods and the controls."""
    measures = run.measures(list(CHANGES))
    if not measures:
        raise ResultFormatError(f"{run.folder} has no {', '.join(CHANGES)} curves; add them to metrics")
    chosen = {(model, kind): _shown(run, model, kind) for model in run.models for kind in measures}
    names = list(looks(name for group in chosen.values() for name in group))
    height = 1.25 * len(run.models) * max(1.0, venue.width / 5.5) + legend_height(names, venue) + 0.3
    figure = Figure(figsize=(venue.width, height), layout="constrained")
    panels = figure.subplots(len(run.models), len(measures), squeeze=False, sharex=True, sharey=True)
    drawn: dict[str, Any] = {}
    for row, model in enumerate(run.models):
        for column, kind in enumerate(measures):
            axes = panels[row][column]
            drawn |= _panel(axes, _rows(run, model, kind), chosen[model, kind], (names, _until(run)))
            title(axes, f"{model}: {kind}", (venue.width - 0.5) / len(measures), venue.font)
            if row == len(run.models) - 1:
                axes.set_xlabel(f"share of pixels {CHANGES[kind]}")
    if min(axes.dataLim.y0 for axes in panels.flat) >= 0:  # similarities may be negative
        panels[0][0].set_ylim(bottom=0)  # once all curves are drawn: it ends the scaling of all panels
    label_left(figure, _score(run), names, venue)
    legend_below(figure, {name: drawn[name] for name in names if name in drawn}, venue)
    return figure


def _rows(run: Gallery, model: str, kind: str) -> pd.DataFrame:
    rows = run.records
    return rows[(rows.model == model) & (rows.measure == kind) & (rows.status == "ok")]


def _shown(run: Gallery, model: str, kind: str) -> list[str]:
    order = ranked(run, model, kind)
    best = [name for name in order if not methods.get(name).control][:BEST]
    return best + [name for name in order if methods.get(name).control]


def _panel(axes: Axes, rows: pd.DataFrame, shown: list[str], names_until: tuple[list[str], float]) -> dict[str, Any]:
    names, until = names_until
    drawn: dict[str, Any] = {}
    for name, look in looks(names).items():
        if name not in shown:
            continue
        stack = np.stack([np.asarray(curve, dtype=np.float64) for curve in rows.loc[rows.method == name, "curve"]])
        x = np.linspace(0, until, stack.shape[1])
        low, high = mean_band(stack)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        drawn[name] = axes.plot(x, stack.mean(0), color=look["color"], linestyle=look["linestyle"])[0]
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    return drawn


def _until(run: Gallery) -> float:
    protocol: dict[str, float] = run.manifest["protocol"]  # type: ignore[assignment]
    return float(protocol["until"])


def _score(run: Gallery) -> str:
    """What the curves are of."""
    protocol: dict[str, str] = run.manifest["protocol"]  # type: ignore[assignment]
    spec: dict[str, object] = run.manifest["spec"]  # type: ignore[assignment]
    if protocol["score"] == "argmax":
        return "share of images, class kept"
    alike = spec["target"] == "embedding" or str(spec["target"]).startswith("text:")
    return "mean similarity" if alike else "mean target probability"
