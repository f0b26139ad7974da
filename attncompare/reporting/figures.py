"""Figures for print, from a run folder."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from attncompare.benchmark.folder import Location
from attncompare.errors import ResultFormatError, unknown_name
from attncompare.methods._base import methods
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.overlay import overlay
from attncompare.reporting.ranks import ranks

WIDTHS = {"cvpr": 3.25, "icml": 3.25, "neurips": 5.5, "iclr": 5.5, "ieee": 3.5, "a4": 7.0}
"""Width in inches of a venue's column (two-column) or text (one-column); a4 is a full page."""

STYLE = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "attncompare",
    "font.size": 7,
    "axes.linewidth": 0.5,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")  # Okabe & Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MAX_ROWS = 3


def _label(name: str) -> str:
    """A method's name over at most three short lines."""
    return name.replace("_", "\n")


def grid(run: Gallery, width: float) -> Figure:
    """Images x methods, one block per model: the same photos as every model and every method sees them."""
    blocks = [(m, run.methods_of(m), [i for i in run.images if _has(run, m, i)][:MAX_ROWS]) for m in run.models]
    blocks = [(model, names, images) for model, names, images in blocks if names and images]
    if not blocks:
        raise ResultFormatError(f"{run.folder} has no saved maps; run the benchmark with --save-maps")
    columns = max(len(names) for _, names, _ in blocks) + 1
    cell = width / columns
    heights = [len(images) * cell + 0.42 for _, _, images in blocks]
    figure = Figure(figsize=(width, sum(heights)))
    font = max(3.0, min(6.5, cell * 9.5))
    for part, (model, names, images) in zip(
        figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0], blocks, strict=True
    ):
        head = 0.42 / (len(images) * cell + 0.42)
        part.text(0.002, 1 - 0.02, model, ha="left", va="top", fontsize=7, weight="bold")
        for row, image in enumerate(images):
            picture = run.picture(model, image)
            for column, method in enumerate(["image", *names]):
                height = (1 - head) / len(images)
                box = (
                    column / columns + 0.001,
                    (len(images) - 1 - row) * height + 0.002,
                    1 / columns - 0.002,
                    height - 0.004,
                )
                axes = part.add_axes(box)
                axes.set_axis_off()
                values = None if method == "image" else run.map(model, method, image)
                if method == "image":
                    axes.imshow(picture)
                    axes.text(
                        0.03,
                        0.03,
                        run.explained_class(model, image).split(",")[0],
                        transform=axes.transAxes,
                        fontsize=font,
                        color="white",
                        bbox={"facecolor": "black", "alpha": 0.6, "pad": 0.6, "lw": 0},
                    )
                elif values is None:
                    axes.text(0.5, 0.5, "failed", ha="center", va="center", fontsize=font, transform=axes.transAxes)
                else:
                    axes.imshow(overlay(picture, values))
                if row == 0:
                    axes.set_title(_label(method), fontsize=font, pad=1.5, linespacing=0.95)
    return figure


def _has(run: Gallery, model: str, image: str) -> bool:
    return any(image in saved.maps for (owner, _), parts in run.maps.items() if owner == model for saved in parts)


def curves(run: Gallery, width: float) -> Figure:
    """Mean deletion and insertion curves with 95 % bands, one row per model."""
    kinds = run.measures(["deletion", "insertion"])
    if not kinds:
        raise ResultFormatError(f"{run.folder} has no deletion or insertion curves; add them to metrics")
    figure = Figure(figsize=(width, 1.7 * len(run.models) + 0.5), layout="constrained")
    panels = figure.subplots(len(run.models), len(kinds), squeeze=False, sharex=True, sharey=True)
    for row, model in enumerate(run.models):
        for column, kind in enumerate(kinds):
            axes = panels[row][column]
            rows = run.records[
                (run.records.model == model) & (run.records.measure == kind) & (run.records.status == "ok")
            ]
            shown = [name for name in _ranked(run, model, kind) if not methods.get(name).control][:5]
            for number, name in enumerate(
                [*shown, *sorted(set(rows.method) & {"random_map", "center_map", "edge_map"})]
            ):
                stack = np.stack([np.asarray(curve) for curve in rows.loc[rows.method == name, "curve"]])
                x = np.linspace(0, 1, stack.shape[1])
                mean, error = stack.mean(0), 1.96 * stack.std(0, ddof=min(1, len(stack) - 1)) / np.sqrt(len(stack))
                control = methods.get(name).control
                colour = "0.45" if control else COLOURS[number % len(COLOURS)]
                style = {"random_map": ":", "center_map": "--", "edge_map": "-."}.get(name, "-")
                axes.plot(x, mean, color=colour, lw=0.9, ls=style, label=name)
                axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.12, lw=0)
            axes.set_title(f"{model}: {kind}", fontsize=7)
            axes.set_ylim(0, 1.02)
            axes.legend(fontsize=4.5, frameon=False, ncols=2)
    for axes in panels[-1]:
        axes.set_xlabel("share of pixels " + ("removed" if axes is panels[-1][0] else "inserted"))
    for axes in panels[:, 0]:
        axes.set_ylabel("target probability")
    return figure


def _ranked(run: Gallery, model: str, measure: str) -> list[str]:
    """Methods from best to worst."""
    from attncompare.metrics._base import metrics

    rows = run.summary[(run.summary.model == model) & (run.summary.measure == measure) & (run.summary.n > 0)]
    return list(rows.sort_values("mean", ascending=metrics.get(measure).better == "lower").method)


def bars(run: Gallery, width: float) -> Figure:
    """Mean and 95 % interval of every metric, methods ranked by the first."""
    from attncompare.metrics._base import metrics

    names = run.metric_names()
    if not names:
        raise ResultFormatError(f"{run.folder} has no metric values")
    longest = max(len(_ranked(run, model, names[0])) for model in run.models)
    figure = Figure(figsize=(width, (0.14 * longest + 0.45) * len(run.models)), layout="constrained")
    panels = figure.subplots(len(run.models), len(names), squeeze=False, sharey="row", sharex="col")
    for row, model in enumerate(run.models):
        order = _ranked(run, model, names[0])[::-1]
        for column, name in enumerate(names):
            axes = panels[row][column]
            rows = run.summary[(run.summary.model == model) & (run.summary.measure == name) & (run.summary.n > 0)]
            rows = rows.set_index("method").reindex(order)
            colours = ["0.6" if methods.get(method).control else COLOURS[0] for method in order]
            axes.barh(order, rows["mean"], color=colours, height=0.7)
            axes.hlines(order, rows["low"], rows["high"], color="black", lw=0.7)
            axes.tick_params(labelsize=5.5, length=2)
            if row == 0:
                arrow = "↓" if metrics.get(name).better == "lower" else "↑"
                axes.set_title(f"{_label(name)} {arrow}", fontsize=5.5)
        panels[row][0].set_ylabel(model, fontsize=6)
    return figure


def cost(run: Gallery, width: float) -> Figure:
    """Quality against latency: the best methods lie at the cheap and good corner."""
    kind = (run.measures(["insertion", "deletion"]) or [""])[0]
    if not kind or not run.measures(["latency_median"]):
        raise ResultFormatError(f"{run.folder} has no timing beside its scores; run it with timing")
    shown = sorted(
        set(run.summary.loc[run.summary.measure == kind, "method"]), key=lambda n: (methods.get(n).control, n)
    )
    figure = Figure(figsize=(width, 1.9 + 0.12 * -(-len(shown) // max(2, int(width / 1.3)))), layout="constrained")
    panels = figure.subplots(1, len(run.models), squeeze=False, sharey=True)[0]
    drawn = {}
    for axes, model in zip(panels, run.models, strict=True):
        table = run.summary[run.summary.model == model].pivot_table(index="method", columns="measure", values="mean")
        table = table.reindex(columns=[kind, "latency_median"])
        table = table.dropna(subset=[kind, "latency_median"])
        for number, name in enumerate(shown):
            if name in table.index:
                look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "ms": 3.5}
                look |= {"mfc": "none"} if methods.get(name).control else {}
                x, y = table.loc[name, "latency_median"] * 1e3, table.loc[name, kind]
                drawn[name] = axes.plot(x, y, ls="none", mew=0.7, **look)[0]
        axes.set_xscale("log")
        axes.set_title(model, fontsize=7)
        axes.set_xlabel("latency (ms)")
        axes.tick_params(labelsize=6)
    panels[0].set_ylabel(f"{kind} AUC")
    names = [name for name in shown if name in drawn]
    columns = max(2, int(width / 1.3))
    figure.legend(
        [drawn[n] for n in names], names, loc="outside lower center", ncols=columns, fontsize=5, frameon=False
    )
    return figure


KINDS: dict[str, Callable[[Gallery, float], Figure]] = {
    "grid": grid,
    "curves": curves,
    "bars": bars,
    "cost": cost,
    "ranks": ranks,
}


def draw(folder: Location, kind: str, *, venue: str = "a4") -> Figure:
    """A matplotlib figure of a run: grid, curves, bars, cost or ranks, at the width of a venue."""
    if kind not in KINDS:
        raise unknown_name("figure", kind, KINDS)
    if venue not in WIDTHS:
        raise unknown_name("venue", venue, WIDTHS)
    with mpl.rc_context(STYLE):
        return KINDS[kind](Gallery.open(folder), WIDTHS[venue])


def save_figure(figure: Figure, path: Path) -> Path:
    """Write PDF, SVG or PNG; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix)
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=200, metadata=metadata)
    return path
