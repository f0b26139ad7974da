"""attncompare report."""

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write report.html for a run.

    Example: attncompare report runs/first
    """
    from attncompare.reporting.html import write_report

    typer.echo(write_report(folder))
