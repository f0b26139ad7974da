"""attncompare explain."""

import os
from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.inside import Asked, explain_layers, explain_top
from attncompare.cli.options import (
    Device,
    Layers,
    Methods,
    Models,
    Options,
    Seed,
    TargetOption,
    parse_layers,
    parse_options,
)
from attncompare.cli.running import finish, run_spec
from attncompare.errors import SpecError


def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Models = None,
    method: Methods = None,
    out: Annotated[Path, typer.Option(help="Folder for maps, overlays and the figure.")] = Path("runs/explain"),
    target: TargetOption = None,
    option: Options = None,
    layers: Layers = None,
    channels: Annotated[
        int | None, typer.Option(help="Of each layer so many of the strongest channels; 3 with --layers alone.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="The maps of so many of the model's first choices.")] = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Draw where models look in some images; without --method, with all cheap methods.

    With --layers or --channels: layers x strongest channels (method activation), and a table that compares the layers.
    With --top: one figure of the most probable classes (method cam unless another is named).

    Example: attncompare explain cat.png --model timm/vit_tiny_patch16_224@random --method all --out maps
    """
    from attncompare.benchmark.records import REPORTED_MEASURES
    from attncompare.benchmark.spec import make_spec
    from attncompare.demo import save_overlays
    from attncompare.reporting.figures import draw, save_figure
    from attncompare.reporting.gallery import Gallery

    missing = [str(path) for path in images if not os.path.isfile(path)]
    if missing:
        raise SpecError(f"no such image file: {', '.join(missing)}")
    names = model or ["demo/cnn", "demo/vit"]
    if layers or channels is not None or top is not None:
        if target is not None or (top is not None and (layers or channels is not None)):
            raise SpecError("--layers, --top and --target are three questions; ask one of them in a command")
        asked = Asked(images, names, tuple(method or ()), parse_options(option), out, device, seed)
        return explain_layers(asked, parse_layers(layers), channels) if top is None else explain_top(asked, top)
    spec = make_spec(
        {
            "models": tuple(names),
            "methods": tuple(method or ("cheap",)),
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
    for row in records[records.measure.isin(REPORTED_MEASURES)].itertuples():
        typer.echo(f"{row.measure} of {row.method} on {row.model}, {row.image}: {row.value:.3g}")
    if (records.status == "ok").any():
        for path in save_overlays(out):
            typer.echo(path)
        if any(Gallery.open(out).methods_of(name) for name in spec.models):
            typer.echo(save_figure(draw(out, "grid"), out / "comparison.pdf"))
        typer.echo(run.report())
    finish(run)
