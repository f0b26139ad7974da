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
) -> None:
    """Write report.html for a run: one file, with a folder of images beside it where they exceed 9.5 MB.

    Example: attncompare report runs/first
    """
    from attncompare.reporting.html import MOST_INSIDE, write_report

    typer.echo(write_report(folder, also=also or (), most_inside=None if one_file else MOST_INSIDE))
