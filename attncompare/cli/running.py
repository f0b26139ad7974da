"""Running a spec from a terminal: progress, Ctrl-C and the exit code."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attncompare.errors import unknown_name

if TYPE_CHECKING:
    from attncompare.benchmark.execution import Execution
    from attncompare.benchmark.run import Run
    from attncompare.benchmark.spec import BenchmarkSpec
    from attncompare.progress import Tick
    from attncompare.tuning import Tuning

EXIT_WRONG, EXIT_FAILED_CELLS, EXIT_INTERRUPTED = 1, 3, 130
TUNED = ("channels_last", "contiguous")


@contextmanager
def progress_bar() -> "Iterator[Callable[[Tick], None]]":
    """A rich progress bar with the time left, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
    task = bar.add_task("", total=None)

    def show(tick: "Tick") -> None:
        bar.start()  # not before the first step, so that an error before it stands alone
        bar.update(task, completed=tick.done, total=tick.total, description=tick.what)

    try:
        yield show
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()


def parse_tuning(layout: str | None) -> "Tuning":
    """Memory that is kept, which changes no value, and the layout that --tune asks for; an error for another name."""
    from attncompare.tuning import Tuning

    if layout is None:
        return Tuning(keep_memory=True)
    if layout not in TUNED:
        raise unknown_name("setting of --tune", layout, TUNED)
    return Tuning(keep_memory=True, layout=layout)  # type: ignore[arg-type]


def run_spec(
    spec: "BenchmarkSpec", out: str | Path, execution: "Execution | None" = None, tuning: "Tuning | None" = None
) -> "Run":
    """Run with a progress bar in a tuned process; Ctrl-C says how to go on."""
    from attncompare.benchmark.execution import Execution
    from attncompare.benchmark.run import run_benchmark
    from attncompare.tuning import tune

    tune(tuning or parse_tuning(None))
    with resumable("what is finished is"), progress_bar() as progress:
        return run_benchmark(spec, out, progress=progress, execution=execution or Execution())


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Ctrl-C inside says what is kept and how to go on, and exits 130. what: with its verb, "finished epochs are"."""
    try:
        yield
    except KeyboardInterrupt:
        again = shlex.join(sys.argv[1:])
        typer.echo(f"\ninterrupted; {what} kept. Go on with: attncompare {again}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def tell(text: str, paths: Sequence[Path]) -> None:
    """Print what came out, and then the files that were written."""
    typer.echo(text)
    for path in paths:
        typer.echo(path)


def report_damage(run: "Run") -> None:
    """Say on stderr that damaged files were found in the run's folder, now or earlier."""
    from attncompare.benchmark.store import ResultStore

    aside = len(ResultStore(run.folder).quarantined())
    if aside:
        typer.echo(
            f"damaged record files were set aside and computed again: {aside} in {run.folder}/quarantine", err=True
        )


def finish(run: "Run") -> None:
    """Exit 3 when cells failed, 1 when nothing could be computed, else 0."""
    records = run.records()
    failed = records[records.status == "failed"]
    if len(failed):
        typer.echo(f"{len(failed)} values failed; the first reason: {failed.detail.iloc[0]}", err=True)
        raise typer.Exit(EXIT_FAILED_CELLS)
    if not (records.status == "ok").any():
        typer.echo(f"nothing could be computed: {records.detail.iloc[0]}", err=True)
        raise typer.Exit(EXIT_WRONG)
