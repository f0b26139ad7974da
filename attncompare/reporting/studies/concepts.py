"""TCAV scores of concepts by layer, against where the scores of sets of random images lie."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncompare.reporting.figures._base import Venue, styled, venue_of
from attncompare.reporting.figures._charts import legend_below, legend_height
from attncompare.reporting.figures._looks import COLORS, MARKERS
from attncompare.studies.concepts import MEASURES, ConceptStudy

PANEL = 1.7  # inches of height
AXES = {"score": "TCAV score", "magnitude": "mean derivative"}
MIDDLE = {"score": 0.5, "magnitude": 0.0}
NULL = "95 % of random sets"


def concepts_figure(study: ConceptStudy, venue: str = "a4") -> Figure:
    """Scores (above) and magnitudes (below) of every concept by layer, with 95 % intervals over the random partners.

    The gray band is where 95 % of sets of random images lie; a star marks a concept that lies outside it also when all
    layers and concepts of this measure are corrected for (Holm, 0.05).

    >>> import torch
    >>> import attncompare as ac
    >>> noise = torch.rand(60, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> found = ac.studies.tcav(ac.load_model("demo/cnn"), noise[:4], 1, {"dark": noise[:6] / 2}, noise, ["2"])
    >>> [axes.get_ylabel() for axes in concepts_figure(found).axes]
    ['TCAV score', 'mean derivative']
    """
    page = venue_of(venue)
    names = [*study.concepts, NULL, "significant"]
    with styled(page):
        height = PANEL * len(MEASURES) + legend_height(names, page) + 0.2
        figure = Figure(figsize=(page.width, height), layout="constrained")
        panels = figure.subplots(len(MEASURES), 1, sharex=True)
        drawn: dict[str, object] = {}
        for axes, measure in zip(panels, MEASURES, strict=True):
            drawn |= _panel(axes, study, measure, page)
        panels[0].set_title(f"{study.model}: is {study.target} raised by a concept?", loc="left")
        panels[-1].set_xlabel("layer, shallow to deep")
        legend_below(figure, {name: drawn[name] for name in names}, page)
    return figure


def _panel(axes: Axes, study: ConceptStudy, measure: str, page: Venue) -> dict[str, object]:
    """One measure: a place on the x axis for each layer, and within it one for each concept."""
    table, width = study.table[study.table.measure == measure], 0.8 / len(study.concepts)
    drawn: dict[str, object] = {}
    bands = table.drop_duplicates("layer").set_index("layer").loc[list(study.layers)]
    drawn[NULL] = axes.bar(
        range(len(bands)),
        bands.null_high - bands.null_low,
        bottom=bands.null_low,
        width=0.92,
        color="0.88",
        linewidth=0,
    )
    axes.axhline(MIDDLE[measure], color="black", linewidth=0.5)
    for number, name in enumerate(study.concepts):
        rows = table[table.concept == name].set_index("layer").loc[list(study.layers)]
        places = np.arange(len(rows)) + (number - (len(study.concepts) - 1) / 2) * width
        drawn[name] = axes.errorbar(
            places,
            rows["mean"],
            yerr=_reach(rows),
            linestyle="none",
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5,
            elinewidth=0.8,
            clip_on=False,
        )
        for place, top in zip(places[rows.significant], rows["high"][rows.significant], strict=True):
            axes.annotate("*", (place, top), ha="center", fontsize=page.font + 2)
    drawn["significant"] = axes.plot([], [], "k*", markersize=4, linestyle="none")[0]
    if measure == "score":
        low, high = float(bands.null_low.min()), float(bands.null_high.max())
        axes.set_ylim(max(-0.1, min(low, -0.05)), min(1.15, max(high, 1.1)))
    axes.set_ylabel(AXES[measure])
    axes.set_xticks(range(len(study.layers)), study.layers)
    axes.set_xlim(-0.5, len(study.layers) - 0.5)
    return drawn


def _reach(rows: pd.DataFrame) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(2,n) how far the interval reaches below and above the mean."""
    return np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]).clip(min=0)
