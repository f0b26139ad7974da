"""Plotly charts for the report, as plain JSON-ready dictionaries: data, layout, and alt, what they show in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from attncompare.benchmark.statistics import mean_band
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting import findings
from attncompare.reporting.gallery import Gallery

LAYOUT: dict[str, Any] = {
    "margin": {"l": 55, "r": 15, "t": 10, "b": 45},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 12},
    "showlegend": False,
    "hovermode": "closest",
    "height": 340,
}
# Okabe & Ito without yellow, which white swallows, and black, which a dark page does.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
GRAY = "#8a8f98"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "diamond", "triangle-up", "cross", "x", "star")
CONTROLS = {"random_map": "dot", "center_map": "dash", "edge_map": "dashdot"}
OPEN = {"random_map": "square-open", "center_map": "circle-open", "edge_map": "diamond-open"}
COSTS = {
    "latency_median": ("latency (ms, log scale)", 1e3),
    "passes": ("forward + backward passes per image (log scale)", 1.0),
    "peak_bytes": ("peak memory (MB, log scale)", 1e-6),
}
"""Measure -> the words of its axis and the factor to their unit."""
LONGEST = 24
"""Letters of a name beside a heat map in one line: a phone shows twelve columns beside it."""
ROW, LINE, LETTER = 26, 14, 7
"""Pixels of a row of a heat map, of each further line of its name, and of a letter."""


def _chart(figure: go.Figure, alt: str, **layout: Any) -> dict[str, Any]:
    figure.update_layout(template=None, **{**LAYOUT, **layout})
    figure.update_xaxes(zeroline=False, automargin=True)
    figure.update_yaxes(zeroline=False, automargin=True)
    found = figure.to_plotly_json()
    return {"data": found["data"], "layout": found["layout"], "alt": alt}


def plain(name: str) -> str:
    """A name as plotly shows it letter by letter: plotly reads tags, fields (%{x}) and formulas ($x$) in its texts.

    >>> plain("mine <b>&$x$")
    'mine &lt;b&gt;&amp;&#36;x&#36;'
    """
    return escape(name, quote=False).replace("$", "&#36;").replace("%", "&#37;")


def arrow(measure: str) -> str:
    """The direction in which a metric is better."""
    return "" if measure not in metrics.names() else " ↓" if metrics.get(measure).better == "lower" else " ↑"


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every chart of a run."""

    color: str
    dash: str
    symbol: str


def looks(run: Gallery) -> dict[str, Look]:
    """Method -> its look: no two share color and dash, nor color and symbol; controls are gray and come last."""
    names = sorted(set(map(str, run.records.method)), key=lambda name: (methods.get(name).control, name))
    found = {}
    for i, name in enumerate(names):
        row = i // len(COLORS)
        found[name] = Look(COLORS[i % len(COLORS)], DASHES[row % len(DASHES)], SYMBOLS[row % len(SYMBOLS)])
        if methods.get(name).control:
            found[name] = Look(GRAY, CONTROLS.get(name, "longdashdot"), OPEN.get(name, "circle-open"))
    return found


def curves(run: Gallery, model: str, measure: str) -> dict[str, Any] | None:
    """Mean curve of every method with a bootstrap 95 % band; None where the model has none."""
    rows = run.records[(run.records.model == model) & (run.records.measure == measure) & run.records.curve.notna()]
    rows = rows[rows.status == "ok"]
    shown = {name: look for name, look in looks(run).items() if name in set(rows.method)}
    if not shown:
        return None
    figure = go.Figure()
    for name, look in shown.items():
        stack = np.stack([np.asarray(curve, dtype=np.float64) for curve in rows.loc[rows.method == name, "curve"]])
        x, (low, high) = np.arange(stack.shape[1]) / _steps(run, model), mean_band(stack)
        figure.add_scatter(
            x=_short([*x, *x[::-1]]),
            y=_short([*high, *low[::-1]]),
            name=name,
            fill="toself",
            fillcolor=look.color,
            opacity=0.1,
            line={"width": 0},
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=_short(x),
            y=_short(stack.mean(0)),
            name=name,
            mode="lines",
            line={"color": look.color, "width": 2, "dash": look.dash},
            hovertemplate=f"{plain(name)}<br>%{{x:.0%}} changed: %{{y:.3f}}<extra></extra>",
        )
    verb = "inserted" if measure.startswith("insertion") else "removed"
    return _chart(
        figure,
        f"Mean {measure} curves of {len(shown)} methods on {model} with 95 % bands.",
        xaxis={"title": {"text": f"share of the image {verb}"}, "tickformat": ".0%"},
        yaxis={"title": {"text": "score of the target"}},
    )


def _steps(run: Gallery, model: str) -> int:
    """N of the protocol at the model's size."""
    from attncompare.metrics.protocols import Protocol

    described: dict[str, Any] = run.manifest["models"][model]  # type: ignore[index]
    h, w = described["size"]
    return Protocol(**run.manifest["protocol"]).count((h, w))  # type: ignore[arg-type]


def _short(values: Any) -> list[float]:
    """Four digits are all that can be seen."""
    return [round(float(value), 4) for value in values]


def cost_table(run: Gallery, model: str) -> pd.DataFrame:
    """(method x measure) means of a model, with the column `passes`."""
    table = run.summary[run.summary.model == model].pivot_table(index="method", columns="measure", values="mean")
    if "passes_forward" in table and "passes_backward" in table:
        table["passes"] = table["passes_forward"] + table["passes_backward"]
    return table


def front_of(run: Gallery, model: str, measure: str, quality: str) -> list[list[str]]:
    """The Pareto front of a model's methods that are no control."""
    table = cost_table(run, model)
    if measure not in table or quality not in table:
        return []
    real = table[(table[measure] > 0) & table[quality].notna()]
    controls = [name for name in real.index if methods.get(str(name)).control]
    return findings.pareto_front(real.drop(index=controls), measure, quality)


def cost(run: Gallery, model: str, measure: str, quality: str) -> dict[str, Any] | None:
    """Quality against a cost, every method a point; the Pareto front of those that are no control is a line."""
    table = cost_table(run, model)
    if measure not in table or quality not in table:
        return None
    words, factor = COSTS[measure]
    table = table[(table[measure] > 0) & table[quality].notna()]
    if not len(table):
        return None
    front = [name for point in front_of(run, model, measure, quality) for name in point]
    figure, found = go.Figure(), table.to_dict()
    best = table.loc[front]
    figure.add_scatter(
        x=_digits(best[measure] * factor),
        y=_digits(best[quality]),
        mode="lines",
        line={"color": GRAY, "shape": "hv", "width": 1.5},
        hoverinfo="skip",
    )
    for name, look in looks(run).items():
        if name in table.index:
            figure.add_scatter(
                x=_digits([found[measure][name] * factor]),
                y=_digits([found[quality][name]]),
                name=name,
                mode="markers",
                marker={"color": look.color, "symbol": look.symbol, "size": 13 if name in front else 9},
                hovertemplate=f"{plain(name)}<br>%{{x:.3g}}, %{{y:.3f}}<extra></extra>",
            )
    alt = f"{quality} against {words} on {model}. On the Pareto front: {', '.join(front)}."
    axis = {"type": "log", "title": {"text": words}}
    return _chart(figure, alt, xaxis=axis, yaxis={"title": {"text": plain(quality) + arrow(quality)}})


def _digits(values: Any) -> list[float]:
    return [float(f"{float(value):.5g}") for value in values]


def heat_map(run: Gallery, model: str) -> dict[str, Any] | None:
    """Method x metric, each metric scaled from its worst (0) to its best (1) method on this model."""
    names = run.metric_names()
    rows = run.summary[(run.summary.model == model) & run.summary.measure.isin(names) & (run.summary.n > 0)]
    if not len(rows):
        return None
    table = rows.pivot_table(index="method", columns="measure", values="mean").reindex(columns=names)
    scaled = table.copy()
    for name in names:
        column = table[name] if metrics.get(name).better == "higher" else -table[name]
        span = column.max() - column.min()
        scaled[name] = (column - column.min()) / (span or 1)
    over_all = scaled.mean(axis=1).round(3).sort_values(kind="stable")
    order = [str(name) for name in over_all.index]
    best = [str(name) for name in over_all.index[over_all == over_all.max()]]
    alt = f"Methods by metrics on {model}; best over all: {findings.listed(best)}."
    return matrix(table.loc[order], scaled.loc[order], [name + arrow(name) for name in names], alt)


def matrix(shown: pd.DataFrame, color: pd.DataFrame, columns: list[str], alt: str) -> dict[str, Any]:
    """A heat map: numbers of one frame on the colors (0 to 1, brighter is more) of another.

    Every row and column is named; rows with long names are higher, long columns are shortened, and the hover has them whole.
    """
    rows, heads = [str(name) for name in shown.index], shortened(columns)
    lines = [wrapped(row) for row in shortened(rows, 2 * LONGEST + 2)]
    text = [[("" if np.isnan(v) else f"{v:.2f}") for v in row] for row in shown.to_numpy(dtype=float)]
    cells = [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in color.to_numpy(dtype=float)]
    whole = [
        [f"{plain(row)}, {plain(column)}: {value}" for column, value in zip(columns, values, strict=True)]
        for row, values in zip(rows, text, strict=True)
    ]
    drawn = go.Heatmap(
        z=cells,
        x=[*map(plain, heads)],
        y=["<br>".join(map(plain, line)) for line in lines],
        text=text,
        texttemplate="%{text}",
        hovertext=whole,
        hovertemplate="%{hovertext}<extra></extra>",
        colorscale="Cividis",
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    height = len(rows) * (ROW + LINE * (max(map(len, lines)) - 1)) + LETTER * max(map(len, heads)) + 40
    every = {"type": "category", "tickmode": "linear", "dtick": 1, "tickfont": {"size": 11}}
    figure = go.Figure(drawn)
    figure.update_xaxes(**every, autotickangles=[0, -90], ticklabeloverflow="allow")
    figure.update_yaxes(**every)
    return _chart(figure, alt, height=height)


def shortened(names: Sequence[str], most: int = LONGEST) -> list[str]:
    """Names of so many letters at most, no two alike: of longer ones the source before the slash goes, then the middle.

    >>> shortened(["cam", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"])
    ['cam', 'vit_small_patc…k_ft_in1k']
    """
    short, head = [], most * 3 // 5
    for name in names:
        rest = name if len(name) <= most else name.partition("/")[2] or name
        short.append(rest if len(rest) <= most else f"{rest[:head]}…{rest[head + 1 - most :]}")
    return [one if short.count(one) == 1 else f"{one} {short[:i].count(one) + 1}" for i, one in enumerate(short)]


def wrapped(name: str) -> list[str]:
    """A name in lines of at most LONGEST letters, broken behind a mark where one is near.

    >>> wrapped("timm/vit_small_patch16_224.augreg_in21k_ft_in1k")
    ['timm/vit_small_patch16_', '224.augreg_in21k_ft_in1k']
    """
    lines = []
    while len(name) > LONGEST:
        end = max(name.rfind(mark, LONGEST // 2, LONGEST) for mark in "/_.-@ ") + 1
        lines.append(name[: end or LONGEST])
        name = name[len(lines[-1]) :]
    return [*lines, name]


def agreement(table: pd.DataFrame, alt: str) -> dict[str, Any]:
    """A square matrix of rank correlations, -1 to 1 shown from dark to bright."""
    return matrix(table[::-1], (table[::-1] + 1) / 2, [*map(str, table.columns)], alt)
