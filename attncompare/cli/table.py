"""attncompare table."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import RunArgument
from attncompare.errors import SpecError


def table(
    folder: RunArgument,
    kind: Annotated[str | None, typer.Argument(help="tex, csv, md or html; else by the file's ending, or md.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A file; standard output when not given.")] = None,
) -> None:
    """Print or write a table.

    Example: attncompare table runs/first -o table.tex
    """
    from attncompare.reporting.tables import FORMATS
    from attncompare.reporting.tables import table as make_table

    ending = out.suffix.removeprefix(".") if out else "md"
    if ending not in FORMATS and not kind:
        raise SpecError(f"table file {out}: the ending must be .{', .'.join(FORMATS)}, or name one of these before it")
    if out and kind != ending and {kind, ending} <= FORMATS.keys():
        raise SpecError(f"table file {out}: the ending is not that of {kind}, which was asked for")
    text = make_table(folder, kind or ending)
    if out is None:
        typer.echo(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        typer.echo(out)
