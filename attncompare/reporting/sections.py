"""The part of the report that is about one run: what was run, rankings, charts, and what is missing with its reason."""

from collections.abc import Sequence
from math import comb
from typing import Any

import pandas as pd

from attncompare.benchmark.groups import LEVEL, significance_groups
from attncompare.benchmark.rankings import score_table
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting import charts, findings
from attncompare.reporting.chart_groups import chart_groups
from attncompare.reporting.entries import Entries
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.content import CONSTANT, FAILED, NO_VALUE, number

COSTS: dict[str, tuple[str, str, float, str]] = {
    "latency_median": ("latency (ms)", "median latency at the timing batch", 1e3, ".1f"),
    "latency_ratio": ("latency (× forward)", "as a multiple of the plain forward pass of the same batch", 1, ".3g"),
    "passes_forward": ("forward passes", "per image", 1, ".3g"),
    "passes_backward": ("backward passes", "per image", 1, ".3g"),
    "peak_bytes": ("peak memory (MB)", "beyond the loaded model", 1e-6, ".1f"),
    "logit_deviation": ("logit deviation", "largest difference of a logit from float32", 1, ".2g"),
}
"""Measure -> head, meaning, factor to its unit, format."""
EMPTY = {"value": "", "text": NO_VALUE, "interval": "", "letters": "", "marks": "", "title": "", "place": 0}
"""A cell without a value."""


def section(entries: Entries, number: int) -> dict[str, Any]:
    """Everything the template needs of a run."""
    run = entries.run
    names, costs = run.metric_names(failed=True), run.timing_names(list(COSTS), failed=True)
    spec: dict[str, Any] = run.manifest["spec"]  # type: ignore[assignment]
    letters = {(model, name): _letters(run, model, name) for model in run.models for name in names}
    heads = [
        {"name": n + charts.arrow(n), "better": metrics.get(n).better, "about": metrics.get(n).summary} for n in names
    ]
    heads += [_cost_head(name) for name in costs]
    data = spec["data"] if isinstance(spec["data"], str) else f"{len(spec['data'])} files"
    rankings = [
        _ranking(run, model, names, costs, letters) for model in run.models if _methods(run, model, names, costs)
    ]
    timed, images = bool(spec.get("timing_only")), _images(int(run.manifest["images"]))  # type: ignore[call-overload]
    return {
        "id": f"run{number}",
        "title": f"First images of “{data}”, timed and not scored" if timed else f"{images} of “{data}”",
        "timed": timed,
        "scored": bool(names),
        "too_few": _too_few(run, names, letters),
        "target": entries.target,
        "manifest": run.manifest,
        "heads": heads,
        "rankings": rankings,
        "marks": _marks(rankings),
        "groups": chart_groups(run),
        "problems": _problems(run),
    }


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _letters(run: Gallery, model: str, measure: str) -> dict[str, str]:
    table = score_table(run.records, model, measure)
    return significance_groups(table) if len(table.columns) else {}


def _too_few(run: Gallery, names: Sequence[str], letters: dict[tuple[str, str], dict[str, str]]) -> str:
    """Of the models on which no test could tell two methods apart, why; "" where there is none.

    Of n pairs the smallest p of Wilcoxon's two-sided signed-rank test is 2 / 2^n, and Holm multiplies it by the number of
    pairs of methods. Differences that tie make it smaller, so that what was told apart counts as well.
    """
    found: dict[str, tuple[float, int, int]] = {}
    for model in run.models:
        held = {name: letters[model, name] for name in names if len(letters[model, name]) > 1}
        counts = [(int(findings.best_first(run, model, name).n.max()), comb(len(one), 2)) for name, one in held.items()]
        smallest = min(((2.0 ** (1 - n) * pairs, n, pairs) for n, pairs in counts), default=(0.0, 0, 0))
        if smallest[0] > LEVEL and all(set.intersection(*map(set, one.values())) for one in held.values()):
            found[model] = smallest
    if not found:
        return ""
    on = "" if len(found) == len(run.models) else f" on {findings.listed(list(found))}"
    _, n, pairs = min(found.values())
    return (
        f"With {_images(n)} no test can tell two methods apart{on}: the smallest p that it can give, "
        f"{2.0 ** (1 - n):.2g}, times {pairs} pair{'s' * (pairs != 1)} of methods is above 5 %."
    )


def _first(run: Gallery, model: str, names: Sequence[str]) -> str:
    """The first metric that has values on a model; where all failed the first."""
    return next((name for name in names if len(findings.best_first(run, model, name))), names[0])


def _methods(run: Gallery, model: str, names: Sequence[str], costs: Sequence[str]) -> list[str]:
    """Methods with values on a model, best first by its first metric; without metrics the cheapest; last what failed."""
    rows = run.computed[run.computed.model == model]
    if names:
        first = findings.best_first(run, model, _first(run, model, names))
        rows = rows[rows.measure.isin(names)]
    else:
        first = rows[rows.measure.isin(costs[:1]) & (rows.n > 0)].sort_values("mean", kind="stable")
        rows = rows[rows.measure.isin(costs)]
    found = [str(name) for name in first.method]
    return found + sorted(set(map(str, rows.method)) - set(found))


def _ranking(
    run: Gallery,
    model: str,
    names: Sequence[str],
    costs: Sequence[str],
    letters: dict[tuple[str, str], dict[str, str]],
) -> dict[str, Any]:
    rows = run.summary[run.summary.model == model]
    rows = rows.assign(lost=rows.index.isin(run.computed.index) & (rows.n == 0))
    found = {(row.method, row.measure): row for row in rows.itertuples(index=False)}
    places = {name: _places(rows, name) for name in names}
    lines = []
    for method in _methods(run, model, names, costs):
        cells = [
            _cell(found.get((method, name)), name, letters[model, name].get(method, ""), places[name].get(method, 0))
            for name in names
        ]
        cells += [_cost_cell(found.get((method, name)), name) for name in costs]
        constant = int(rows.loc[rows.method == method, "degenerate"].max())
        lines.append({"method": method, "control": methods.get(method).control, "cells": cells, "constant": constant})
    first = _first(run, model, names) if names else ""
    finding = findings.leader(run, model, first, letters[model, first]) if names else ""
    return {"model": model, "finding": finding, "rows": lines}


def _marks(rankings: list[dict[str, Any]]) -> str:
    """What the marks in some tables mean, of those that are there."""
    rows = [row for ranking in rankings for row in ranking["rows"]]
    there = {
        f"{FAILED} without the images that failed": any(cell["marks"] for row in rows for cell in row["cells"]),
        f"{CONSTANT} with images whose map is constant, which ranks nothing": any(row["constant"] for row in rows),
    }
    said = [words for words, found in there.items() if found]
    return f"{'; '.join(said)}: a cell's hint counts them." if said else ""


def _places(rows: pd.DataFrame, measure: str) -> dict[str, int]:
    """Method -> 1 for the best mean, 2 for the second; those that are printed alike share a place."""
    rows = rows[(rows.measure == measure) & (rows.n > 0)]
    ranks = findings.printed(rows["mean"], measure).rank(method="min", ascending=metrics.get(measure).better == "lower")
    return {str(method): int(rank) for method, rank in zip(rows.method, ranks, strict=True) if rank <= 2}


def _cell(row: Any, measure: str, letters: str, place: int) -> dict[str, Any]:
    if row is None or row.n == 0:
        return _without_value(row)
    title = f"n = {row.n}, failed {row.failed}, constant maps {row.degenerate}"
    interval = f"{number(row.low, measure)} – {number(row.high, measure)}"
    return {
        "value": row.mean, "text": number(row.mean, measure), "interval": interval, "letters": letters,
        "marks": FAILED * (row.failed > 0), "title": title, "place": place,
    }  # fmt: skip


def _without_value(row: Any) -> dict[str, Any]:
    """A dash, or that it failed, with the reason."""
    if row is None:
        return EMPTY
    return EMPTY | {"text": "failed" if row.lost else NO_VALUE, "title": row.detail}


def _cost_head(measure: str) -> dict[str, str]:
    """The head of a cost, with the variant behind it, as in "latency_median bf16"."""
    base, _, variant = measure.partition(" ")
    name, about, _, _ = COSTS[base]
    return {"name": f"{name} {variant}".strip() + " ↓", "better": "lower", "about": about}


def _cost_cell(row: Any, measure: str) -> dict[str, Any]:
    if row is None or row.n == 0:
        return _without_value(row)
    _, about, factor, how = COSTS[measure.partition(" ")[0]]
    return EMPTY | {"value": row.mean, "text": format(row.mean * factor, how), "title": about}


def _problems(run: Gallery) -> list[dict[str, Any]]:
    """What was refused or failed, once per reason, with the number of images."""
    rows = run.records[run.records.status != "ok"]
    found = []
    for (model, method, status, detail), group in rows.groupby(["model", "method", "status", "detail"], sort=True):
        images = sorted(set(group.image) - {""})
        on = "every image" if not images else images[0] if len(images) == 1 else f"{len(images)} images"
        measures = sorted(set(group.measure))
        of = "" if len(measures) > 1 else measures[0]
        found.append({"model": model, "method": method, "status": status, "on": on, "of": of, "detail": detail})
    return found
