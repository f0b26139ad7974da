"""report.html: one self-contained file that opens from disk and asks the network for nothing."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from attncompare.benchmark.folder import Location, RunFolder
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting import charts
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.overlay import colourise, data_uri, is_signed
from attncompare.reporting.tables import HEADS, SCALE, head, is_timing

MAX_IMAGES = 32
ABOUT = {
    "latency_median": "median latency at the timing batch",
    "latency_ratio": "latency as a multiple of the plain forward pass of the same batch",
    "passes_forward": "forward passes per image",
    "passes_backward": "backward passes per image",
    "peak_bytes": "peak memory beyond the loaded model",
    "logit_deviation": "largest difference of a logit from float32",
}


def write_report(folder: Location, *, also: Sequence[Location] = ()) -> Location:
    """Write report.html into a run (with further runs, such as the demo's photos) and return its path or URL."""
    runs = [Gallery.open(path) for path in (folder, *also)]
    environment = Environment(loader=PackageLoader("attncompare.reporting"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.j2").render(
        plotly=get_plotlyjs(),
        sections=[_section(run) for run in runs],
        browser=[entry for run in runs for entry in _browser(run)],
        charts=[chart for run in runs for chart in _charts(run)],
    )
    files = RunFolder(folder)
    files.write("report.html", page.encode())
    return files.full("report.html")


def _section(run: Gallery) -> dict[str, Any]:
    """What was run, the ranking of each model, and what is missing with its reason."""
    names = run.metric_names()
    timing = run.timing_names(list(HEADS))
    rankings = []
    for model in run.models:
        rows = []
        for method in _scored(run, model, names):
            cells = [_cell(run, model, method, name) for name in (*names, *timing)]
            rows.append({"method": method, "control": methods.get(method).control, "cells": cells})
        if rows:
            rankings.append({"model": model, "rows": rows})
    problems = run.records[run.records.status != "ok"]
    problems = problems[["model", "method", "status", "detail"]].drop_duplicates()
    heads = [{"name": name, "better": metrics.get(name).better, "about": metrics.get(name).summary} for name in names]
    heads += [{"name": head(name), "better": "", "about": ABOUT[name.partition(" ")[0]]} for name in timing]
    return {
        "spec": run.manifest["spec"],
        "environment": run.manifest["environment"],
        "models": run.manifest["models"],
        "images": run.manifest["images"],
        "heads": heads,
        "rankings": rankings,
        "problems": problems.to_dict("records"),
        "saved": bool(run.maps),
    }


def _scored(run: Gallery, model: str, names: Sequence[str]) -> list[str]:
    """Methods with values on a model, best first by the first metric."""
    if not names:
        return []
    rows = run.summary[(run.summary.model == model) & (run.summary.n > 0) & run.summary.measure.isin(names)]
    first = rows[rows.measure == names[0]].set_index("method")["mean"]
    sign = 1 if metrics.get(names[0]).better == "lower" else -1
    return sorted(set(rows.method), key=lambda name: (sign * first.get(name, 1e9), name))


def _cell(run: Gallery, model: str, method: str, measure: str) -> dict[str, Any]:
    rows = run.summary
    rows = rows[(rows.model == model) & (rows.method == method) & (rows.measure == measure)]
    if not len(rows) or rows.iloc[0]["n"] == 0:
        return {"value": None, "text": "", "title": str(rows.iloc[0]["detail"]) if len(rows) else ""}
    row = rows.iloc[0]
    title = f"n = {row['n']}, failed {row['failed']}, degenerate {row['degenerate']}"
    if is_timing(measure):
        base = measure.partition(" ")[0]
        text = f"{row['mean'] * SCALE.get(base, 1):.3g}"
        return {"value": row["mean"], "text": text, "interval": "", "title": title}
    interval = f"{row['low']:.3f} – {row['high']:.3f}"
    return {"value": row["mean"], "text": f"{row['mean']:.3f}", "interval": interval, "title": title}


def _charts(run: Gallery) -> list[dict[str, Any]]:
    """Curves, cost and heat maps, where the run has what they need."""
    kinds = run.measures(["deletion", "insertion"])
    found = [charts.curves(run, model, kind) for model in run.models for kind in kinds]
    if kinds and run.measures(["latency_median"]):
        found.append(charts.cost(run, kinds[-1]))
    if run.metric_names():
        found += [charts.heat_map(run, model) for model in run.models]
    return found


def _browser(run: Gallery) -> list[dict[str, Any]]:
    """Everything the image browser shows: per image and model the picture, and per method the map or a reason."""
    entries = []
    for image in run.images[:MAX_IMAGES]:
        shown = []
        for model in run.models:
            names = run.methods_of(model)
            if not any(run.map(model, name, image) is not None for name in names):
                continue
            picture = run.picture(model, image)
            maps = []
            for name in names:
                values = run.map(model, name, image)
                entry: dict[str, Any] = {"method": name, "scores": _scores(run, model, name, image)}
                if values is None:
                    entry["reason"] = run.reason(model, name, image)
                else:
                    entry |= {"map": data_uri(colourise(values, picture.shape[:2])), "signed": is_signed(values)}
                maps.append(entry)
            explained = run.explained_class(model, image)
            shown.append({"model": model, "picture": data_uri(picture), "class": explained, "maps": maps})
        entries.append({"image": image, "models": shown})
    return entries


def _scores(run: Gallery, model: str, method: str, image: str) -> dict[str, float]:
    rows = run.records
    rows = rows[(rows.model == model) & (rows.method == method) & (rows.image == image) & (rows.status == "ok")]
    return {measure: round(float(value), 3) for measure, value in zip(rows.measure, rows.value, strict=True)}
