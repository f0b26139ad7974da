"""The command line: one file per command; the heavy imports sit inside the functions, so that help is quick."""

from typing import Annotated

import typer

from attncompare import __version__
from attncompare.cli.bench import bench
from attncompare.cli.demo import demo
from attncompare.cli.doctor import doctor
from attncompare.cli.explain import explain
from attncompare.cli.figure import figure
from attncompare.cli.list import list_
from attncompare.cli.query import query
from attncompare.cli.report import report
from attncompare.cli.running import EXIT_INTERRUPTED, EXIT_WRONG
from attncompare.cli.study import study
from attncompare.cli.table import table
from attncompare.cli.train import train
from attncompare.environment import commit
from attncompare.errors import AttnCompareError

app = typer.Typer(
    help="Compare where CNNs and vision transformers look.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    """Print the version, with the commit where the source has one, and stop."""
    if asked:
        source = commit()
        typer.echo(f"attncompare {__version__}" + (f" (commit {source})" if source else ""))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Options of the program itself, which stand before a command."""


for command in (
    demo,
    explain,
    bench,
    report,
    figure,
    table,
    query,
    train,
    list_,
    doctor,
):
    app.command(name=command.__name__.strip("_"))(command)
app.add_typer(study, name="study")


def main() -> None:
    """Entry point: errors of this project, and wrong usage, are one line and exit 1."""
    try:
        code = app(standalone_mode=False)
    except AttnCompareError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(EXIT_WRONG) from None
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        message = getattr(error, "format_message", None)  # wrong usage; typer may or may not carry its own click
        if message is None:
            raise
        typer.echo(f"error: {message()} (see --help)", err=True)
        raise SystemExit(EXIT_WRONG) from None
    raise SystemExit(code or 0)
