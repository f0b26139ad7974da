"""What channel attention gave and did: training curves, gate values by class, and what its favored channels are worth."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attncompare.reporting.figures._base import Venue, styled, venue_of
from attncompare.reporting.figures._looks import COLORS, GRAY
from attncompare.reporting.figures._words import wrapped
from attncompare.reporting.studies._folder import save_study
from attncompare.studies.gate_comparison import GateComparison

NAMES = {False: "without", True: "with channel attention"}
LOOKS: dict[bool, dict[str, Any]] = {
    False: {"color": GRAY, "linestyle": (0, (4, 1.5)), "marker": "o", "markersize": 2.5},
    True: {"color": COLORS[0], "linestyle": "-", "marker": "s", "markersize": 2.5},
}
CHANNELS = {"random": (GRAY, "o"), "highest": (COLORS[4], "^"), "lowest": (COLORS[0], "v")}


def training_figure(study: GateComparison, venue: str = "a4") -> Figure:
    """Validation accuracy of every training, against epochs and against the processor time spent in them."""
    page = venue_of(venue)
    with styled(page):
        figure = Figure(figsize=(page.width, 0.36 * page.width + 0.35), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for (_, gated), rows in study.history.groupby(["seed", "gated"]):
            look = LOOKS[bool(gated)]
            panels[0].plot(np.arange(1, len(rows) + 1), rows["accuracy"], **look, linewidth=0.8)
            panels[1].plot(rows["cpu_seconds"], rows["accuracy"], **look, linewidth=0.8)
        panels[0].set(xlabel="epoch", ylabel="validation accuracy")
        panels[0].xaxis.get_major_locator().set_params(integer=True)
        panels[1].set(xlabel="processor seconds in training steps", xlim=(0, None))
        lines = [Line2D([], [], **LOOKS[gated], label=f"{name} ({study.seeds} seeds)") for gated, name in NAMES.items()]
        figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, handlelength=3)
    return figure


def gates_figure(study: GateComparison, venue: str = "a4") -> Figure:
    """The gate values of the first seed: a panel per layer, a row per class, channels in the order of their mean gate."""
    page, layers = venue_of(venue), list(dict.fromkeys(study.gates["layer"]))
    first = study.gates[study.gates["seed"] == study.gates["seed"].iloc[0]]
    tall = 1.2 * page.small / 72 * len(study.class_names) + 0.36
    with styled(page):
        figure = Figure(figsize=(page.width, tall * len(layers) + 0.25), layout="constrained")
        panels = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
        low, high = float(first["gate"].min()), float(first["gate"].max())
        for axes, layer in zip(panels, layers, strict=True):
            values = first[first["layer"] == layer].pivot(index="class", columns="channel", values="gate")
            order = values.mean().sort_values(ascending=False).index
            shown = axes.imshow(
                values[order], aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high
            )
            names = [study.class_names[int(label)] for label in values.index]
            axes.set_yticks(np.arange(len(names)), names, fontsize=page.small)
            axes.tick_params(length=0)
            axes.set_xticks([])
            axes.set_title(f"{layer}: {len(order)} channels, highest mean gate first", fontsize=page.small, pad=2)
        seed = int(first["seed"].iloc[0])
        figure.colorbar(shown, ax=panels, label=f"mean gate on the test images (seed {seed})", fraction=0.04, pad=0.01)
    return figure


def causes_figure(study: GateComparison, venue: str = "a4") -> Figure:
    """Accuracy lost without random channels (a dot per draw), the highest-gated and the lowest-gated, layer by layer."""
    page, layers = venue_of(venue), list(dict.fromkeys(study.ablation["layer"]))
    with styled(page):
        figure = Figure(figsize=(page.width, 2.3), layout="constrained")
        panels = figure.subplots(1, len(layers), squeeze=False, sharey=True)[0]
        for axes, layer in zip(panels, layers, strict=True):
            rows = study.ablation[study.ablation["layer"] == layer]
            _losses(axes, rows)
            words = f"{layer}: {rows['zeroed'].iloc[0]} of {rows['of'].iloc[0]} channels set to zero"
            title = wrapped(words, (page.width - 0.5) / len(layers) - 0.1, page.small)
            axes.set_title(title, fontsize=page.small, pad=3)
            axes.set_xlabel("seed")
        panels[0].set_ylabel("drop in test accuracy")
        figure.legend(handles=_keys(page), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _losses(axes: Axes, rows: pd.DataFrame) -> None:
    """One layer: a column per seed."""
    seeds = sorted(rows["seed"].unique())
    rng = np.random.default_rng(0)
    axes.axhline(0, color="black", linewidth=0.5)
    for place, seed in enumerate(seeds):
        for which, (color, marker) in CHANNELS.items():
            drops = rows[(rows["seed"] == seed) & (rows["channels"] == which)]["drop"]
            beside = rng.uniform(-0.2, 0.2, len(drops)) if which == "random" else np.zeros(len(drops))
            size = 1.8 if which == "random" else 4.5
            axes.plot(place + beside, drops, linestyle="none", marker=marker, color=color, markersize=size, mew=0)
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.set_xlim(-0.6, len(seeds) - 0.4)


def _keys(page: Venue) -> list[Line2D]:
    words = {"random": "random channels", "highest": "highest-gated", "lowest": "lowest-gated"}
    size = page.small / 1.6
    return [
        Line2D([], [], linestyle="none", marker=marker, color=color, markersize=size, mew=0, label=words[which])
        for which, (color, marker) in CHANNELS.items()
    ]


def save_comparison(study: GateComparison, out: Path, venue: str = "a4") -> list[Path]:
    """Tables and figures of the study into its folder; returns the paths."""
    settings = study.spec.model_dump(mode="json") | {"seeds": sorted(study.runs["seed"].tolist())}
    tables = {"channel_attention": study.table(), "causes": study.causes(), "runs": study.runs}
    tables |= {"history": study.history, "gates": study.gates, "ablation": study.ablation}
    figures = {"training": training_figure, "gates": gates_figure, "causes": causes_figure}
    drawn = {name: draw(study, venue) for name, draw in figures.items()}
    return save_study(out, "channel-attention", settings, tables=tables, figures=drawn)
