"""attncompare report."""

import typer

from attncompare.cli.options import RunArgument


def report(folder: RunArgument) -> None:
    """Write report.html for a run.

    Example: attncompare report runs/first
    """
    from attncompare.reporting.html import write_report

    typer.echo(write_report(folder))
