"""attncompare study channel-attention."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Json, Layers, parse_layers
from attncompare.cli.running import progress_bar, resumable, tell


def channel_attention(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="A TOML file as for attncompare train; flags override it.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="tutorial_cnn, or NAME@random.")] = None,
    layers: Layers = None,
    reduction: Annotated[int | None, typer.Option(help="Channels per hidden unit of the gates.")] = None,
    data: Annotated[str | None, typer.Option(help="shapes, a folder of classes, or torchvision:NAME.")] = None,
    train_images: Annotated[int | None, typer.Option(help="At most so many to train on.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    seeds: Annotated[int, typer.Option(help="Pairs of trainings; at least 3.")] = 3,
    draws: Annotated[int, typer.Option(help="Draws of random channels to set to zero.")] = 50,
    out: Annotated[Path, typer.Option(help="Folder for trainings, tables and figures.")] = Path(
        "runs/channel-attention"
    ),
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Json = False,
) -> None:
    """Train with and without channel attention over several seeds: accuracy, cost, and what the gates do.

    A second call repeats no finished training, and goes on with one that was interrupted.

    Example: attncompare study channel-attention --data shapes --train-images 8000 --epochs 10 --seeds 3
    """
    from attncompare.reporting.studies.channel_attention import save_comparison
    from attncompare.storage.spec import read_toml
    from attncompare.studies.gate_comparison import BLOCKS
    from attncompare.studies.gate_comparison import channel_attention as study
    from attncompare.training.spec import TrainSpec

    flags = {"model": model, "data": data, "train_images": train_images, "size": size, "epochs": epochs}
    flags |= {"device": device, "threads": threads}
    values = read_toml(spec_file) if spec_file else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    if layers is not None or reduction is not None:
        given = values.get("squeeze_excite")
        gates = dict(given) if isinstance(given, dict) else {"layers": BLOCKS}
        gates |= {"layers": parse_layers(layers)} if layers is not None else {}
        values["squeeze_excite"] = gates | ({"reduction": reduction} if reduction is not None else {})
    with resumable("finished epochs are"), progress_bar() as progress:
        found = study(TrainSpec(**values), seeds=seeds, draws=draws, out=out, progress=progress)
    saved = save_comparison(found, out)
    table = found.table()
    if as_json:
        typer.echo(table.to_json(orient="records"))
        return
    for shown in (table, found.causes()):
        short = [name for name in shown.columns if not name.endswith(("_low", "_high"))]
        typer.echo(shown[short].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    tell(f"{found.seeds} seeds; p of the paired t test, uncorrected; intervals in the tables", saved)
