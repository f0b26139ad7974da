"""Plotly charts for the report, as plain JSON-ready dictionaries."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.figures import COLOURS
from attncompare.reporting.gallery import Gallery

LAYOUT: dict[str, Any] = {
    "margin": {"l": 60, "r": 20, "t": 40, "b": 45},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#7a7f87"},
    "legend": {"orientation": "h", "y": -0.2},
    "height": 420,
}
GREY = "#8a8f98"


def _as_json(figure: go.Figure) -> dict[str, Any]:
    figure.update_layout(**LAYOUT)
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zeroline=False)
    found: dict[str, Any] = {"data": figure.to_plotly_json()["data"], "layout": figure.to_plotly_json()["layout"]}
    found["layout"].pop("template", None)
    return found


def curves(run: Gallery, model: str, kind: str) -> dict[str, Any]:
    """Mean curve of every method with a 95 % band."""
    figure = go.Figure()
    rows = run.records[(run.records.model == model) & (run.records.measure == kind) & (run.records.status == "ok")]
    names = sorted(set(rows.method), key=lambda name: (methods.get(name).control, name))
    for number, name in enumerate(names):
        stack = np.stack([np.asarray(curve, dtype=np.float64) for curve in rows.loc[rows.method == name, "curve"]])
        x = np.linspace(0, 1, stack.shape[1])
        mean, error = stack.mean(0), 1.96 * stack.std(0, ddof=min(1, len(stack) - 1)) / np.sqrt(len(stack))
        control = methods.get(name).control
        colour = GREY if control else COLOURS[number % 7]
        band = go.Scatter(
            x=[*x, *x[::-1]],
            y=[*(mean + error), *(mean - error)[::-1]],
            fill="toself",
            line={"width": 0},
            fillcolor=colour,
            opacity=0.12,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
        dash = {"random_map": "dot", "center_map": "dash", "edge_map": "dashdot"}.get(name, "solid")
        line = go.Scatter(
            x=[*x], y=[*mean], name=name, legendgroup=name, line={"color": colour, "width": 2, "dash": dash}
        )
        figure.add_traces([band, line])
    verb = "removed" if kind == "deletion" else "inserted"
    figure.update_layout(title=f"{model}: {kind}", xaxis_title=f"share of the image {verb}", yaxis_title="target score")
    return _as_json(figure)


def cost(run: Gallery, quality: str) -> dict[str, Any]:
    """Quality against latency, one colour per model."""
    figure = go.Figure()
    for number, model in enumerate(run.models):
        table = run.summary[run.summary.model == model].pivot_table(index="method", columns="measure", values="mean")
        if "latency_median" not in table or quality not in table:
            continue
        table = table.dropna(subset=["latency_median", quality])
        symbols = ["square-open" if methods.get(str(name)).control else "circle" for name in table.index]
        figure.add_trace(
            go.Scatter(
                x=[*(table["latency_median"] * 1e3)],
                y=[*table[quality]],
                text=[*map(str, table.index)],
                name=model,
                mode="markers+text",
                textposition="top center",
                textfont={"size": 9},
                marker={"color": COLOURS[number % 7], "symbol": symbols, "size": 9},
            )
        )
    better = metrics.get(quality).better
    figure.update_layout(
        title="Quality against cost (open squares are controls)",
        xaxis_type="log",
        xaxis_title="latency (ms)",
        yaxis_title=f"{quality} ({better} is better)",
    )
    return _as_json(figure)


def heat_map(run: Gallery, model: str) -> dict[str, Any]:
    """Method x metric, each metric scaled from its worst (0) to its best (1) method on this model."""
    names = run.metric_names()
    rows = run.summary[(run.summary.model == model) & run.summary.measure.isin(names) & (run.summary.n > 0)]
    table = rows.pivot_table(index="method", columns="measure", values="mean").reindex(columns=names)
    scaled = table.copy()
    for name in names:
        column = table[name] if metrics.get(name).better == "higher" else -table[name]
        span = column.max() - column.min()
        scaled[name] = (column - column.min()) / (span or 1)
    order = scaled.mean(axis=1).sort_values().index
    text = [[("" if np.isnan(v) else f"{v:.3f}") for v in row] for row in table.loc[order].to_numpy()]
    cells = [[None if np.isnan(v) else float(v) for v in row] for row in scaled.loc[order].to_numpy()]
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            x=names,
            y=[*map(str, order)],
            text=text,
            texttemplate="%{text}",
            colorscale="Viridis",
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(title=f"{model}: brighter is better")
    found = _as_json(figure)
    found["layout"]["margin"] = {"l": 150, "r": 20, "t": 40, "b": 60}
    return found
