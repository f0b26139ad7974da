"""attncompare table."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import RunArgument


def table(
    folder: RunArgument,
    kind: Annotated[str, typer.Argument(help="tex, csv, md or html.")] = "md",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A file; standard output when not given.")] = None,
) -> None:
    """Print or write a table.

    Example: attncompare table runs/first tex -o table.tex
    """
    from attncompare.reporting.tables import table as make_table

    text = make_table(folder, kind)
    if out is None:
        typer.echo(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        typer.echo(out)
