"""Tables for print: LaTeX (booktabs), CSV and Markdown, from a run folder."""

import math
from collections.abc import Callable, Iterator

import pandas as pd

from attncompare.benchmark.folder import Location
from attncompare.errors import unknown_name
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.spreadsheet import frame_as_csv

HEADS = {
    "latency_median": "ms",
    "latency_ratio": "x fwd",
    "passes_forward": "fwd",
    "passes_backward": "bwd",
    "peak_bytes": "MB",
    "logit_deviation": "logits",
}
"""Timing measure -> head of its column; measures of a further variant carry its name behind theirs."""

SCALE = {"latency_median": 1e3, "peak_bytes": 1e-6}


def head(measure: str) -> str:
    """The head of a column.

    >>> head("latency_median"), head("latency_median bf16"), head("insertion")
    ('ms', 'ms bf16', 'insertion')
    """
    base, space, variant = measure.partition(" ")
    return HEADS.get(base, base) + space + variant


def is_timing(measure: str) -> bool:
    """Whether a column is of the timing pass."""
    return measure.partition(" ")[0] in HEADS


def _columns(run: Gallery) -> list[str]:
    return [*run.metric_names(), *run.timing_names(list(HEADS))]


def _rows(run: Gallery, model: str) -> list[str]:
    """Methods with at least one value, controls last."""
    scored = run.summary[(run.summary.model == model) & (run.summary.n > 0) & run.summary.measure.isin(_columns(run))]
    return sorted(set(scored.method), key=lambda name: (methods.get(name).control, name))


def _cell(run: Gallery, model: str, method: str, measure: str) -> pd.Series | None:
    rows = run.summary
    rows = rows[(rows.model == model) & (rows.method == method) & (rows.measure == measure) & (rows.n > 0)]
    return rows.iloc[0] if len(rows) else None


def _places(run: Gallery, model: str, measure: str) -> dict[str, int]:
    """Method -> 1 for the best mean, 2 for the second; ties share a place."""
    if measure not in metrics.names():
        return {}
    rows = run.summary[(run.summary.model == model) & (run.summary.measure == measure) & (run.summary.n > 0)]
    ranks = rows["mean"].round(4).rank(method="min", ascending=metrics.get(measure).better == "lower")
    return {method: int(rank) for method, rank in zip(rows.method, ranks, strict=True) if rank <= 2}


def _protocol(run: Gallery) -> str:
    spec: dict[str, object] = run.manifest["spec"]  # type: ignore[assignment]
    environment: dict[str, object] = run.manifest["environment"]  # type: ignore[assignment]
    return (
        f"{run.manifest['images']} images of '{spec['data']}', protocol {spec['protocol']}, target {spec['target']}, "
        f"seed {spec['seed']}, {environment['device']}, {environment['threads']} threads; mean and bootstrap 95 % interval"
    )


def _batch(run: Gallery) -> object:
    spec: dict[str, object] = run.manifest["spec"]  # type: ignore[assignment]
    return spec["timing_batch"]


def _number(value: float, measure: str) -> str:
    base = measure.partition(" ")[0]
    if base == "logit_deviation":
        return f"{value:.0e}"
    digits = 0 if base.startswith("passes") else 1 if base in HEADS else 3
    return f"{value * SCALE.get(base, 1):.{digits}f}"


def _body(
    run: Gallery, model: str, columns: list[str], draw: Callable[[pd.Series, str, int | None], str], missing: str
) -> Iterator[tuple[str, list[str]]]:
    """Method and drawn cells, row by row. draw: (summary row, measure, place) -> text."""
    places = {measure: _places(run, model, measure) for measure in columns}
    for method in _rows(run, model):
        found = {measure: _cell(run, model, method, measure) for measure in columns}
        yield method, [missing if row is None else draw(row, m, places[m].get(method)) for m, row in found.items()]


def _latex_cell(row: pd.Series, measure: str, place: int | None) -> str:
    text = _number(row["mean"], measure)
    text = rf"\textbf{{{text}}}" if place == 1 else rf"\underline{{{text}}}" if place == 2 else text
    half = (row["high"] - row["low"]) / 2
    return text if is_timing(measure) or math.isnan(half) else rf"{text} {{\tiny$\pm${half:.3f}}}"


def _markdown_cell(row: pd.Series, measure: str, place: int | None) -> str:
    text = _number(row["mean"], measure)
    text = f"**{text}**" if place == 1 else text
    return text if is_timing(measure) else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


def latex(run: Gallery) -> str:
    """A booktabs table: best bold, second underlined, half width of the interval in small type."""
    columns = _columns(run)
    arrows = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}
    heads = [head(c) if is_timing(c) else f"{_escape(c)} {arrows[metrics.get(c).better]}" for c in columns]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_escape(_protocol(run))}. Latency in ms at batch {_batch(run)}; "
        r"fwd, bwd: passes per image; MB: peak memory beyond the loaded model.}",
        r"\begin{tabular}{l" + "r" * len(columns) + "}",
        r"\toprule",
        "method & " + " & ".join(heads) + r" \\",
    ]
    for model in run.models:
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textbf{{{_escape(model)}}}}} \\"]
        for method, cells in _body(run, model, columns, _latex_cell, "--"):
            lines.append(_escape(method) + " & " + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _escape(text: str) -> str:
    """LaTeX special characters made harmless."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def comma_separated(run: Gallery) -> str:
    """The whole summary, one row per model, method and measure, with failures and reasons."""
    return frame_as_csv(run.summary)


def markdown(run: Gallery) -> str:
    """A table per model with intervals, best in bold."""
    parts = [_protocol(run), ""]
    columns = _columns(run)
    for model in run.models:
        parts += [f"**{model}**", "", "| method | " + " | ".join(head(c) for c in columns) + " |"]
        parts.append("|---|" + "---:|" * len(columns))
        for method, cells in _body(run, model, columns, _markdown_cell, ""):
            parts.append(f"| {method} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Gallery], str]] = {"tex": latex, "csv": comma_separated, "md": markdown}


def table(folder: Location, kind: str) -> str:
    """The results of a run as "tex", "csv" or "md"."""
    if kind not in FORMATS:
        raise unknown_name("table format", kind, FORMATS)
    return FORMATS[kind](Gallery.open(folder))
