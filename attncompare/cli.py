"""The command line: demo, explain, bench, report, figure, table, list, doctor."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attncompare.errors import AttnCompareError, SpecError

if TYPE_CHECKING:
    from attncompare.benchmark.run import Run
    from attncompare.benchmark.spec import BenchmarkSpec
    from attncompare.benchmark.worker import Tick

app = typer.Typer(
    help="Compare where CNNs and vision transformers look.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_WRONG, EXIT_FAILED_CELLS, EXIT_INTERRUPTED = 1, 3, 130

Models = Annotated[list[str] | None, typer.Option("--model", "-m", help="A model; repeat for more.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help='A method, "quick" (no hundreds of passes) or "all"; repeat for more.'),
]
Options = Annotated[list[str] | None, typer.Option("--option", help="method.option=value; repeat for more.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps.")]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target", help='argmax, label, embedding, a class index, "class:NAME" or "text:PROMPT" (CLIP, SigLIP).'
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_options(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """["grad_cam.layer=layer3"] -> {"grad_cam": {"layer": "layer3"}}; values are JSON where they can be, else text."""
    options: dict[str, dict[str, Any]] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        method, dot, option = name.partition(".")
        if not equals or not dot:
            raise SpecError(f"option {text!r}: write method.option=value, such as grad_cam.layer=layer3")
        try:
            options.setdefault(method, {})[option] = json.loads(value)
        except json.JSONDecodeError:
            options.setdefault(method, {})[option] = value
    return options


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
        bar.stop()


def run_spec(spec: "BenchmarkSpec", out: Path) -> "Run":
    """Run with a progress bar in a process that keeps its memory; Ctrl-C says how to go on."""
    from attncompare.benchmark.run import run_benchmark
    from attncompare.tuning import Tuning, tune

    tune(Tuning(keep_memory=True))  # no value changes by it
    try:
        with progress_bar() as progress:
            return run_benchmark(spec, out, progress=progress)
    except KeyboardInterrupt:
        typer.echo(
            f"\ninterrupted; what is finished is kept. Go on with: attncompare {shlex.join(sys.argv[1:])}", err=True
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="Costly methods too.")] = False,
) -> None:
    """Compare a CNN, an SE-CNN and a ViT on known evidence, then a real CNN and a real ViT on photos.

    Example: attncompare demo
    """
    from attncompare.demo import run_demo

    run_demo(out, full, run_spec, typer.echo)


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Models = None,
    method: Methods = None,
    out: Annotated[Path, typer.Option(help="Folder for maps, overlays and the figure.")] = Path("runs/explain"),
    target: TargetOption = None,
    option: Options = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Draw where models look in some images; without --method by every method that takes no hundreds of passes.

    Example: attncompare explain cat.png --model timm/vit_tiny_patch16_224@random --method all --out maps
    """
    from attncompare.benchmark.spec import make_spec
    from attncompare.demo import save_overlays
    from attncompare.reporting.figures import draw, save_figure
    from attncompare.reporting.gallery import Gallery

    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise SpecError(f"no such image file: {', '.join(missing)}")
    spec = make_spec(
        {
            "models": tuple(model or ("demo/cnn", "demo/vit")),
            "methods": tuple(method or ("quick",)),
            "metrics": (),
            "data": tuple(str(path) for path in images),
            "target": target or "argmax",
            "options": parse_options(option),
            "device": device,
            "seed": seed,
            "timing": False,
            "save_maps": True,
        }
    )
    run = run_spec(spec, out)
    records = run.records()
    for row in records[records.status != "ok"].drop_duplicates(["model", "method", "detail"]).itertuples():
        typer.echo(f"{row.status}: {row.model} {row.method}: {row.detail}", err=True)
    if (records.status == "ok").any():
        for path in save_overlays(out):
            typer.echo(path)
        if any(Gallery.open(out).methods_of(name) for name in spec.models):
            typer.echo(save_figure(draw(out, "grid"), out / "comparison.pdf"))
        typer.echo(run.report())
    finish(run)


@app.command()
def bench(
    spec_file: Annotated[Path | None, typer.Argument(help="A TOML spec; flags override it.")] = None,
    model: Models = None,
    method: Methods = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric; repeat for more.")] = None,
    protocol: Annotated[str | None, typer.Option(help="A name (see list protocols), or a TOML file.")] = None,
    data: Annotated[str | None, typer.Option(help="shapes, photos or a folder.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images.")] = None,
    target: TargetOption = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/bench"),
    option: Options = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    save_maps: Annotated[
        bool | None, typer.Option("--save-maps/--no-save-maps", help="Keep maps for the report.")
    ] = None,
    timing: Annotated[bool | None, typer.Option("--timing/--no-timing", help="Time every method.")] = None,
    timing_only: Annotated[bool, typer.Option("--timing-only", help="Time, score nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the grid and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Score and time methods on models; a second call computes only what is missing.

    Example: attncompare bench -m demo/cnn -m demo/vit --method all --data shapes --limit 32 --out runs/first
    """
    from attncompare.benchmark.spec import make_spec, read_toml

    values = read_toml(spec_file) if spec_file else {}
    flags = {
        "models": model, "methods": method, "metrics": metric, "protocol": protocol, "data": data, "limit": limit,
        "target": target, "device": device, "seed": seed, "threads": threads, "save_maps": save_maps, "timing": timing,
    }  # fmt: skip
    values |= {
        name: tuple(value) if isinstance(value, list) else value for name, value in flags.items() if value is not None
    }
    if isinstance(values.get("options", {}), dict):  # else the check of the spec says what is wrong
        values |= {"options": {**values.get("options", {}), **parse_options(option)}}
    values |= {"timing_only": True} if timing_only else {}
    spec = make_spec(values)
    if dry_run:
        from attncompare.benchmark.plan import describe_plan

        typer.echo(json.dumps(describe_plan(spec), indent=2))
        return
    run = run_spec(spec, out)
    if as_json:
        typer.echo(run.summary().to_json(orient="records"))
    else:
        from attncompare.reporting.tables import table

        typer.echo(table(out, "md"))
        typer.echo(f"{run.computed} cells computed, {run.reused} reused; records in {out / 'records'}")
    finish(run)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write report.html for a run.

    Example: attncompare report runs/first
    """
    from attncompare.reporting.html import write_report

    typer.echo(write_report(folder))


@app.command()
def figure(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    kind: Annotated[str, typer.Argument(help="grid, curves, bars, cost or ranks.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PDF, SVG or PNG.")] = Path("figure.pdf"),
    venue: Annotated[str, typer.Option(help="cvpr, icml, neurips, iclr, ieee or a4: sets the width.")] = "a4",
) -> None:
    """Draw a figure for print.

    Example: attncompare figure runs/first curves -o curves.pdf --venue neurips
    """
    from attncompare.reporting.figures import draw, save_figure

    if out.suffix not in (".pdf", ".svg", ".png"):
        raise SpecError(f"figure file {out}: the ending must be .pdf, .svg or .png")
    typer.echo(save_figure(draw(folder, kind, venue=venue), out))


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    kind: Annotated[str, typer.Argument(help="tex, csv or md.")] = "md",
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
        out.write_text(text)
        typer.echo(out)


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="models, methods, metrics or protocols.")],
    pattern: Annotated[str, typer.Argument(help="A model pattern such as 'timm/vit_*', or a method's name.")] = "",
    as_json: Json = False,
) -> None:
    """List models, methods (one with its options), metrics or protocols.

    Example: attncompare list models 'timm/vit_*'
    """
    from attncompare.errors import unknown_name

    listings: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "models": _models,
        "methods": _methods,
        "metrics": _metrics,
        "protocols": _protocols,
    }
    if kind not in listings:
        raise unknown_name("list", kind, listings)
    rows = listings[kind](pattern)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row.get('about', '')}".rstrip())
        for line in row.get("options", []):
            typer.echo(f"{'':<{width}}    {line}")


def _models(pattern: str) -> list[dict[str, Any]]:
    from attncompare.catalogue import capabilities
    from attncompare.loading import list_models

    return [{"name": name, "about": capabilities(name)} for name in list_models(pattern or "*")]


def _methods(pattern: str) -> list[dict[str, Any]]:
    from attncompare.methods._base import methods

    chosen = [methods.get(pattern)] if pattern else list(methods)
    rows = []
    for method in chosen:
        notes = "" if method.class_sensitive else " Does not depend on the target."
        row: dict[str, Any] = {"name": method.name, "about": method.summary + notes}
        if pattern:
            row["about"] += f" [{method.reference}] needs: {', '.join(method.needs)}"
            row["options"] = [
                f"{method.name}.{o.name} = {json.dumps(o.default)}"
                f"{f' of {list(o.choices)}' if o.choices else ''}: {o.meaning}"
                for o in method.options
            ]
        rows.append(row)
    return rows


def _metrics(pattern: str) -> list[dict[str, Any]]:
    from attncompare.metrics._base import metrics

    chosen = [metrics.get(pattern)] if pattern else list(metrics)
    return [{"name": m.name, "about": f"({m.better} is better) {m.summary} [{m.reference}]"} for m in chosen]


def _protocols(pattern: str) -> list[dict[str, Any]]:
    from attncompare.metrics.protocols import PROTOCOLS, get_protocol

    chosen = [get_protocol(pattern)] if pattern else list(PROTOCOLS.values())
    return [
        {"name": p.name, "about": ", ".join(f"{k}={v}" for k, v in p.describe().items() if k != "name")} for p in chosen
    ]


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A model to look into; the installation when not given.")] = None,
    as_json: Json = False,
    device: Device = "cpu",
) -> None:
    """Say what was found in a model and why anything is missing, or what is installed.

    Example: attncompare doctor timm/vit_tiny_patch16_224@random
    """
    if model is None:
        from attncompare.benchmark.run import environment

        found: dict[str, Any] = environment(device)
    else:
        from attncompare.loading import load_model
        from attncompare.methods._base import methods

        adapter = load_model(model, device=device)
        found = adapter.describe()
        found["methods"] = [m.name for m in methods if frozenset(m.needs) <= adapter.supplies]
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    if "missing" in found:  # signals that are missing for one reason, in one line
        reasons: dict[str, list[str]] = {}
        for signal, reason in found["missing"].items():
            reasons.setdefault(reason, []).append(signal)
        found["missing"] = {", ".join(signals): reason for reason, signals in reasons.items()}
    for name, value in found.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, text in value.items():
                typer.echo(f"  {key}: {text}")
        else:
            typer.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


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
