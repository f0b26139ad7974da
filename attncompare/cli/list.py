"""attncompare list."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from attncompare.cli.options import Json


def list_(
    kind: Annotated[str, typer.Argument(help="models, methods, metrics, protocols or figures.")],
    pattern: Annotated[str, typer.Argument(help="A model pattern such as 'timm/vit_*', or a method's name.")] = "",
    as_json: Json = False,
) -> None:
    """List models, methods (one with its options), metrics, protocols or kinds of figure.

    Example: attncompare list models 'timm/vit_*'
    """
    from attncompare.errors import unknown_name

    listings: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "models": _models,
        "methods": _methods,
        "metrics": _metrics,
        "protocols": _protocols,
        "figures": _figures,
    }
    if kind not in listings:
        raise unknown_name("list", kind, listings)
    rows = listings[kind](pattern)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row.get('about', '')}".rstrip())
        for line in row.get("options", []):
            typer.echo(f"{'':<{width}}    {line}")


def _models(pattern: str) -> list[dict[str, Any]]:
    from attncompare.catalogue import capabilities
    from attncompare.models.load import list_models

    return [{"name": name, "about": capabilities(name)} for name in list_models(pattern or "*")]


def _methods(pattern: str) -> list[dict[str, Any]]:
    from attncompare.methods._base import methods

    chosen = [methods.get(pattern)] if pattern else list(methods)
    rows = []
    for method in chosen:
        notes = "" if method.class_sensitive else " Does not depend on the target."
        row: dict[str, Any] = {"name": method.name, "about": method.summary + notes}
        if pattern:
            row["about"] += f" [{method.reference}] needs: {', '.join(method.needs)}"
            row["options"] = [
                f"{method.name}.{o.name} = {json.dumps(o.default)}"
                f"{f' of {list(o.choices)}' if o.choices else ''}: {o.meaning}"
                for o in method.options
            ]
        rows.append(row)
    return rows


def _metrics(pattern: str) -> list[dict[str, Any]]:
    from attncompare.metrics._base import metrics

    chosen = [metrics.get(pattern)] if pattern else list(metrics)
    return [{"name": m.name, "about": f"({m.better} is better) {m.summary} [{m.reference}]"} for m in chosen]


def _protocols(pattern: str) -> list[dict[str, Any]]:
    from attncompare.metrics.protocols import PROTOCOLS
    from attncompare.metrics.user_protocols import get_protocol

    chosen = [get_protocol(pattern)] if pattern else list(PROTOCOLS.values())
    return [
        {"name": p.name, "about": ", ".join(f"{k}={v}" for k, v in p.describe().items() if k != "name")} for p in chosen
    ]


def _figures(pattern: str) -> list[dict[str, Any]]:
    from attncompare.reporting.figures import kinds

    chosen = [kinds.get(pattern)] if pattern else list(kinds)
    return [{"name": kind.name, "about": kind.summary} for kind in chosen]
