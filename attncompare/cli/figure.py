"""attncompare figure."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import RunArgument
from attncompare.errors import SpecError


def figure(
    folder: RunArgument,
    kind: Annotated[str, typer.Argument(help="grid, curves, bars, cost or ranks.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PDF, SVG or PNG.")] = Path("figure.pdf"),
    venue: Annotated[str, typer.Option(help="cvpr, icml, neurips, iclr, ieee or a4: sets the width.")] = "a4",
) -> None:
    """Draw a figure for print.

    Example: attncompare figure runs/first curves -o curves.pdf --venue neurips
    """
    from attncompare.reporting.figures import draw, save_figure

    if out.suffix not in (".pdf", ".svg", ".png"):
        raise SpecError(f"figure file {out}: the ending must be .pdf, .svg or .png")
    typer.echo(save_figure(draw(folder, kind, venue=venue), out))
