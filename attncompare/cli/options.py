"""Options that several commands share: each is said once."""

import json
from typing import Annotated, Any

import typer

from attncompare.errors import SpecError

Models = Annotated[list[str] | None, typer.Option("--model", "-m", help="A model; repeat for more.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help='A method, "cheap" (all methods except those that need hundreds of passes) or "all"; repeat for more.',
    ),
]
Options = Annotated[list[str] | None, typer.Option("--option", help="method.option=value; repeat for more.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps.")]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target", help='argmax, label, embedding, a class index, "class:NAME" or "text:PROMPT" (CLIP, SigLIP).'
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its URL.")]
Layers = Annotated[
    list[str] | None,
    typer.Option(help="Layers by module path, with commas between or repeated; else some over depth."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_layers(given: list[str] | None) -> list[str] | None:
    """Paths with commas between, or repeated, as one list; None where none were given.

    >>> parse_layers(["conv1,conv2", "conv3"]), parse_layers([])
    (['conv1', 'conv2', 'conv3'], None)
    """
    return [path.strip() for text in given for path in text.split(",") if path.strip()] if given else None


def parse_options(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """["grad_cam.layer=layer3"] -> {"grad_cam": {"layer": "layer3"}}; values are JSON where they can be, else text."""
    options: dict[str, dict[str, Any]] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        method, dot, option = name.partition(".")
        if not equals or not dot:
            raise SpecError(f"option {text!r}: write method.option=value, such as grad_cam.layer=layer3")
        try:
            options.setdefault(method, {})[option] = json.loads(value)
        except json.JSONDecodeError:
            options.setdefault(method, {})[option] = value
    return options
