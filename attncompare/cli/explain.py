"""attncompare explain."""

import os
from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Device, Methods, Models, Options, Seed, TargetOption, parse_options
from attncompare.cli.running import finish, run_spec
from attncompare.errors import SpecError


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

    missing = [str(path) for path in images if not os.path.isfile(path)]
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
