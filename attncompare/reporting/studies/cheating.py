"""The study of cheating models as pictures: energy on the cue of both models, and their maps side by side."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncompare.errors import Failure
from attncompare.reporting.figures._base import SMALLEST, styled, venue_of
from attncompare.reporting.figures._looks import COLORS, GRAY
from attncompare.reporting.figures._panels import Block, Cell, draw_blocks
from attncompare.reporting.figures._words import line_height
from attncompare.reporting.overlay import overlay, pixels_of
from attncompare.studies.cheater import ROLES
from attncompare.studies.cheating_models import Cheating, Pair

LOOKS = {"cheating": (COLORS[4], "o", 0.14), "clean": (COLORS[0], "D", -0.14)}
"""Role -> color, marker, and how far above the middle of its row it stands."""

COLUMNS = 9  # maps beside each other
IMAGES = 2  # pictures of each model


def cheating_figure(found: Cheating, venue: str = "a4") -> Figure:
    """Mean energy on the cue and its 95 % interval of every method, for the cheating and the clean model.

    Methods stand in the order of their difference, controls last; the dotted line is the cue's area, which is the energy of
    a map that knows nothing. At the right: how well the energy of one image tells the two models apart (AUROC).
    """
    page = venue_of(venue)
    tables = [table for _, table in found.methods.groupby("model", sort=False)]
    across = len(tables) if page.width >= 5 else 1
    down = -(-len(tables) // across)
    rows = max(len(table) for table in tables)
    with styled(page):
        height = down * (rows * line_height(SMALLEST) * 1.35 + 0.55) + 0.25
        figure = Figure(figsize=(page.width, height), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, table in zip(panels, tables, strict=False):
            _panel(axes, table, found.area)
        for axes in panels[len(tables) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        look = {"fontsize": page.small, "frameon": False, "handlelength": 1.6, "columnspacing": 1.4}
        figure.legend(handles, labels, loc="outside lower center", ncols=3, **look)
    return figure


def cheating_maps_figure(found: Cheating, venue: str = "a4") -> Figure:
    """The same pictures explained on the cheating and the clean model, by the methods that differ most and one control."""
    page = venue_of(venue)
    blocks = []
    for pair in found.pairs:
        table = found.methods[found.methods.model == pair.name]
        names = [*table[~table.control].method[: COLUMNS - 1], *table[table.control].method[:1]]
        blocks.append(
            Block(
                f"{pair.name}: the true class explained, the cue in the top left corner is right",
                ["image", *names],
                [_row(pair, role, place, names) for place in range(min(IMAGES, len(pair.images))) for role in ROLES],
                [role for _ in range(min(IMAGES, len(pair.images))) for role in ROLES],
            )
        )
    with styled(page):
        return draw_blocks(page, blocks)


def _panel(axes: Axes, table: pd.DataFrame, area: float) -> None:
    places = np.arange(len(table))[::-1]
    for role, (color, marker, above) in LOOKS.items():
        axes.hlines(places + above, 100 * table[f"{role}_low"], 100 * table[f"{role}_high"], color=color, linewidth=0.9)
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 3, "linestyle": "none"}
        axes.plot(100 * table[role], places + above, label=f"{role} model", **look)
    axes.axvline(100 * area, color=GRAY, linestyle=":", linewidth=0.8, label="area of the cue")
    axes.set_yticks(places, list(table.method), fontsize=SMALLEST)
    axes.set_ylim(-0.7, len(table) - 0.3)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("energy on the cue (%)")
    axes.set_title(str(table.model.iloc[0]), weight="bold", loc="left")
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": SMALLEST}
    for place, words in [(len(table), "AUROC"), *zip(places, (f"{value:.2f}" for value in table.auroc), strict=True)]:
        axes.annotate(words, (1.01, place), **beside)


def _row(pair: Pair, role: str, place: int, names: list[str]) -> list[Cell]:
    picture = pixels_of(pair.images[place : place + 1])[0]
    model = pair.models[role]
    maps = [pair.found[role].maps[name][place] for name in names]
    return [
        Cell(picture, model.class_name(int(pair.labels[place]))),
        *(Cell(None, one.reason) if isinstance(one, Failure) else Cell(overlay(picture, one.numpy())) for one in maps),
    ]
