"""attncompare report."""

from typing import Annotated

import typer

from attncompare.cli.options import RunArgument


def report(
    folder: RunArgument,
    also: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="A further run in the same page, such as another target's.")
    ] = None,
    one_file: Annotated[bool, typer.Option("--one-file", help="All images in the one file, however large.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Photos and maps without loss, in a folder beside the file if need be.")
    ] = False,
) -> None:
    """Write report.html for a run, of at most 15 MB.

    Where its images exceed 9.5 MB they lose a little, which the page says; where they still do, they go to a folder
    beside it, from which they are read as they are asked for.

    Example: attncompare report runs/first
    """
    from attncompare.reporting.html import MOST_INSIDE, write_report

    most_inside = None if one_file else MOST_INSIDE
    typer.echo(write_report(folder, also=also or (), most_inside=most_inside, exact=exact))
