"""attncompare figure."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import RunArgument
from attncompare.errors import SpecError

ONLY = "Only this one; repeat for more."


def figure(
    folder: RunArgument,
    kind: Annotated[str, typer.Argument(help="A kind of figure: see `attncompare list figures`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PDF, SVG or PNG.")] = Path("figure.pdf"),
    venue: Annotated[
        str,
        typer.Option(
            help="cvpr, icml, ieee (a column; -wide for both), neurips, iclr or a4: sets width and font sizes."
        ),
    ] = "a4",
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help=ONLY)] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help=ONLY)] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="Show this picture; repeat for more.")] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", help=ONLY)] = None,
) -> None:
    """Draw a figure for print.

    Example: attncompare figure runs/first curves -o curves.pdf --venue neurips
    """
    import warnings

    from attncompare.reporting.figures import beyond_page, draw, save_figure, without_glyph, without_values

    if out.suffix not in (".pdf", ".svg", ".png"):
        raise SpecError(f"figure file {out}: the ending must be .pdf, .svg or .png")
    chosen = {"models": model or (), "methods": method or (), "images": image or (), "measures": metric or ()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # said below, once
        drawn = draw(folder, kind, venue=venue, **chosen)
        typer.echo(save_figure(drawn, out))
    if boxes := without_glyph(drawn):
        typer.echo(f"the figures' font has no {' '.join(boxes)}: empty boxes are drawn; rename what is shown", err=True)
    lost = without_values(folder, models=model or (), methods=method or (), measures=metric or ())
    for note in filter(None, (beyond_page(drawn, venue), lost)):
        typer.echo(note, err=True)
