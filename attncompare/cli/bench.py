"""attncompare bench."""

import json
from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Json, Methods, Models, Options, TargetOption, parse_options
from attncompare.cli.running import finish, parse_tuning, report_damage, run_spec


def bench(
    spec_file: Annotated[Path | None, typer.Argument(help="A TOML spec; flags override it.")] = None,
    model: Models = None,
    method: Methods = None,
    metric: Annotated[list[str] | None, typer.Option(help="A metric; repeat for more.")] = None,
    protocol: Annotated[str | None, typer.Option(help="A name (see list protocols), or a TOML file.")] = None,
    data: Annotated[str | None, typer.Option(help="shapes, photos or a folder.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images.")] = None,
    target: TargetOption = None,
    out: Annotated[str, typer.Option(help="The run's folder, or a URL such as s3://bucket/run.")] = "runs/bench",
    option: Options = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, or bf16: scoring under autocast, areas move by up to some hundredths.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="torch, or openvino (an extra): who forwards altered images; checked to 1e-5.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    save_maps: Annotated[
        bool | None, typer.Option("--save-maps/--no-save-maps", help="Keep maps for the report.")
    ] = None,
    timing: Annotated[bool | None, typer.Option("--timing/--no-timing", help="Time every method.")] = None,
    timing_only: Annotated[
        bool, typer.Option("--timing-only", help="Time, score nothing; without --method the cheap methods.")
    ] = False,
    timing_variant: Annotated[
        list[str] | None,
        typer.Option(help="Time as fp32, bf16 (autocast) or compile (torch.compile); repeat for more."),
    ] = None,
    timing_batch: Annotated[int | None, typer.Option(help="Images in a timed batch.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed runs of every method, at least.")] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="channels_last or contiguous (torch's own way of forwarding): the layout of scored images, else chosen by "
            "model. Scores move in their last digits, which is checked."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: actors, here or on a cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Ray actors; as many as there are slots.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="Of Ray actors; 0.5 lets two share one.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; else one is started here.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: every n-th chunk from the i-th on; a run without it unites them.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, passes and estimated time, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score and time methods on models; a second call computes only what is missing.

    Example: attncompare bench -m demo/cnn -m demo/vit --method all --data shapes --limit 32 --out runs/first
    """
    from attncompare.benchmark.execution import Execution, parse_shard
    from attncompare.benchmark.spec import make_spec
    from attncompare.storage.spec import read_toml

    tuning = parse_tuning(tune)
    execution = Execution(engine, parse_shard(shard), workers, gpus_per_worker, address)
    values = read_toml(spec_file) if spec_file else {}
    flags = {
        "models": model, "methods": method, "metrics": metric, "protocol": protocol, "data": data, "limit": limit,
        "target": target, "device": device, "dtype": dtype, "backend": backend, "seed": seed, "threads": threads,
        "save_maps": save_maps, "timing": timing, "timing_variants": timing_variant, "timing_batch": timing_batch,
        "repeats": repeats,
    }  # fmt: skip
    values |= {
        name: tuple(value) if isinstance(value, list) else value for name, value in flags.items() if value is not None
    }
    if isinstance(values.get("options", {}), dict):  # else the check of the spec says what is wrong
        values |= {"options": {**values.get("options", {}), **parse_options(option)}}
    values |= {"timing_only": True} if timing_only else {}
    if values.get("timing_only"):  # nobody times tens of repeats of hundreds of passes without asking for it
        values.setdefault("methods", ("cheap",))
    spec = make_spec(values)
    if dry_run:
        from attncompare.benchmark import dry_run as costs

        found = costs.dry_run(spec, out, execution)
        typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else costs.describe(found, spec, out))
        return
    run = run_spec(spec, out, execution, tuning)
    if shard:
        counts = {"shard": shard, "computed": run.computed, "reused": run.reused, "failed": run.failed}
        typer.echo(json.dumps(counts))
        typer.echo("when all shards are done, the same command without --shard unites them", err=True)
        if not run.manifest()["keys"]:  # more shards than chunks
            return
    elif as_json:
        typer.echo(run.summary().to_json(orient="records"))
    else:
        from attncompare.reporting.tables import table

        typer.echo(table(out, "md"))
        typer.echo(f"{run.computed} cells computed, {run.reused} reused; records in {out}/records")
    report_damage(run)
    finish(run)
