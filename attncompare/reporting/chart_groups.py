"""The charts of one run, in groups with heads that say what they show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from attncompare.methods._base import methods
from attncompare.reporting import agreement, charts, findings
from attncompare.reporting.gallery import Gallery

Variant = tuple[str, str, dict[str, Any] | None]
"""Label, heading, and chart, None where there is no data."""
Shown = tuple[str, list[Variant]]
"""Name of one chart, and its variants."""
Looks = dict[str, charts.Look]


@dataclass(frozen=True)
class Drawn:
    """One chart of a group, with the variants among which the reader chooses; each has its label and heading."""

    name: str
    variants: list[dict[str, Any]]


def chart_groups(run: Gallery) -> list[dict[str, Any]]:
    """Headed groups of charts, each chart with its variants."""
    names, models = run.metric_names(), run.models
    held = set(run.records.loc[run.records.curve.notna(), "measure"])
    drawn = [name for name in names if name in held]
    groups = [
        _group(
            f"{name} curves{charts.arrow(name)}: {_extremes(run, name)}",
            "The score of the target while the image is taken apart or put together in the order of each map; mean over "
            "images, with a pointwise bootstrap 95 % band. Controls are gray. A click on a name hides or shows it.",
            [(model, [("", model, charts.curves(run, model, name))]) for model in models],
            kind="lines",
            looks=charts.looks(run),
        )
        for name in drawn
    ]
    costs = [name for name in charts.COSTS if any(name in charts.cost_table(run, model) for model in models)]
    groups.append(
        _group(
            "Quality against cost",
            "Each point is a method; the line joins the Pareto front, the large points: no other method is both cheaper and "
            "better. Controls are gray and open, and not on it. A click on a name hides or shows it.",
            [(model, _costs(run, model, names, costs)) for model in models],
            kind="points",
            looks=charts.looks(run),
        )
    )
    groups.append(
        _group(
            "Methods by metrics",
            "Means; each column is colored from its worst (dark) to its best (bright) method, best methods on top.",
            [(model, [("", findings.heat(run, model), charts.heat_map(run, model))]) for model in models],
        )
    )
    return [group for group in (*groups, *_agreement(run)) if group["charts"]]


def _extremes(run: Gallery, name: str) -> str:
    """Who is best on each model."""
    first = {model: findings.best_of(findings.best_first(run, model, name), name) for model in run.models}
    return ", ".join(f"{findings.few(found)} on {model}" for model, found in first.items() if found) + " first"


def _costs(run: Gallery, model: str, names: Sequence[str], costs: Sequence[str]) -> list[Variant]:
    """Every metric against every cost."""
    words = {"latency_median": "latency", "passes": "passes", "peak_bytes": "peak memory"}
    return [
        (
            f"{quality} against {words[name]}",
            findings.front(model, charts.front_of(run, model, name, quality), words[name], quality),
            charts.cost(run, model, name, quality),
        )
        for quality in names
        for name in costs
    ]


def _agreement(run: Gallery) -> list[dict[str, Any]]:
    """How far maps agree, between methods and between models; nothing without saved maps."""
    if not run.images:
        return []
    about = (
        "Mean Spearman correlation of the maps over all images, 1 for the same order of places, 0 for none in common."
    )
    tables = {model: agreement.method_agreement(run, model) for model in run.models if run.methods_of(model)}
    groups = [
        _group(
            "Agreement between methods",
            about,
            [
                (
                    model,
                    [
                        (
                            "",
                            f"{model}: {findings.alike(table, 'methods')}",
                            charts.agreement(table, f"Agreement on {model}."),
                        )
                    ],
                )
                for model, table in tables.items()
            ],
        )
    ]
    if len(tables) > 1:
        real = {(model, name): maps for (model, name), maps in run.maps.items() if not methods.get(name).control}
        table = agreement.model_agreement(replace(run, maps=real))
        words = findings.alike(table, "models")
        chart = charts.agreement(table, f"Agreement between models: {words}.")
        more = about + " The methods that both models have count, without controls."
        groups.append(_group("Agreement between architectures", more, [("models", [("", words, chart)])]))
    return groups


def _group(title: str, about: str, shown: list[Shown], *, kind: str = "", looks: Looks | None = None) -> dict[str, Any]:
    """Charts under one head; those without data are left out. kind: what the legend shows of each look, lines or points."""
    found = []
    for name, variants in shown:
        there = [{"label": label, "heading": words, **chart} for label, words, chart in variants if chart is not None]
        if there:
            found.append(Drawn(name, there))
    drawn = {trace.get("name") for one in found for chart in one.variants for trace in chart["data"]}
    legend = {name: look for name, look in (looks or {}).items() if name in drawn}
    return {"title": title, "about": about, "charts": found, "legend": legend, "kind": kind}
