"""attncompare query."""

from typing import Annotated

import typer

from attncompare.cli.options import Json, RunArgument


def query(
    folder: RunArgument,
    sql: Annotated[str, typer.Argument(help="One statement over the view `records`.")],
    as_json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Ask a run's records by SQL (DuckDB); nothing in the run can be changed by it.

    Columns: model, method, image, target, measure, protocol, value, status, detail, key, curve, degenerate, kind, retry,
    device, threads, batch_size, scored_by. kind is a word for the reason in detail; retry says whether a later run tries
    again.

    Example: attncompare query runs/first "select method, avg(value) from records where measure = 'insertion' group by 1"
    """
    from attncompare.benchmark.query import query_run
    from attncompare.reporting.spreadsheet import frame_as_csv

    found = query_run(folder, sql)
    if as_json:
        typer.echo(found.to_json(orient="records"))
    elif csv:
        typer.echo(frame_as_csv(found), nl=False)
    else:
        typer.echo(found.to_string(index=False))
