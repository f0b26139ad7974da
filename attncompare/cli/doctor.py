"""attncompare doctor."""

import json
from typing import Annotated, Any

import typer

from attncompare.cli.options import Device, Json


def doctor(
    model: Annotated[str | None, typer.Argument(help="A model to look into; the installation when not given.")] = None,
    as_json: Json = False,
    device: Device = "cpu",
) -> None:
    """Say what was found in a model and why anything is missing, or what is installed.

    Example: attncompare doctor timm/vit_tiny_patch16_224@random
    """
    if model is None:
        from attncompare import tuning
        from attncompare.environment import environment

        found: dict[str, Any] = environment(device) | {"tuning": tuning.describe()}
    else:
        from attncompare.methods._base import methods
        from attncompare.models.load import load_model

        adapter = load_model(model, device=device)
        found = adapter.describe()
        found["methods"] = [m.name for m in methods if frozenset(m.needs) <= adapter.supplies]
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    if "missing" in found:  # signals that are missing for one reason, in one line
        reasons: dict[str, list[str]] = {}
        for signal, reason in found["missing"].items():
            reasons.setdefault(reason, []).append(signal)
        found["missing"] = {", ".join(signals): reason for reason, signals in reasons.items()}
    for name, value in found.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, text in value.items():
                typer.echo(f"  {key}: {text}")
        else:
            typer.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
