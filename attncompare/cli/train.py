"""attncompare train."""

import json
from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Json
from attncompare.cli.running import progress_bar, resumable


def train(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="A TOML file; see docs/how-to/train.md.")],
    out: Annotated[Path, typer.Option(help="The folder of weights, history and checkpoint.")] = Path("runs/train"),
    seed: Annotated[int | None, typer.Option(help="Instead of the spec's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the spec's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier, with channel attention behind its layers if asked; a second call goes on after a kill.

    Example: attncompare train shapes.toml --out runs/shapes
    """
    from attncompare.storage.spec import read_toml
    from attncompare.training.run import train_model
    from attncompare.training.spec import TrainSpec

    flags = {"seed": seed, "epochs": epochs, "device": device, "threads": threads}
    values = read_toml(spec_file) | {name: value for name, value in flags.items() if value is not None}
    spec = TrainSpec(**values)
    with resumable("finished epochs are"), progress_bar() as progress:
        trained = train_model(spec, out, progress=progress)
    if as_json:
        typer.echo(json.dumps(trained.card))
        return
    card = trained.card
    typer.echo(trained.history[["loss", "accuracy", "learning_rate", "seconds"]].round(4).to_string(index=False))
    typer.echo(
        f"test accuracy {card['test_accuracy']:.4f} with the weights of epoch {card['best_epoch']} of {card['epochs']}, "
        f"{card['parameters']} parameters; {out}/weights.safetensors"
    )
