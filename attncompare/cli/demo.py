"""attncompare demo."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.running import run_spec


def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="Costly methods too.")] = False,
) -> None:
    """Compare a CNN, an SE-CNN and a ViT on known evidence, then a real CNN and a real ViT on photos.

    Example: attncompare demo
    """
    from attncompare.demo import run_demo

    run_demo(out, full, run_spec, typer.echo)
