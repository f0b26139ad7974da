"""attncompare study cheating."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Device, Json, Methods, Models, Seed
from attncompare.cli.running import progress_bar, resumable, tell


def cheating(
    model: Models = None,
    method: Methods = None,
    out: Annotated[Path, typer.Option(help="Folder for weights, tables and figures.")] = Path("runs/cheating"),
    images: Annotated[int, typer.Option(help="Test images that are explained.")] = 32,
    steps: Annotated[int, typer.Option(help="Training steps of each model.")] = 200,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Which methods reveal that a model cheats: energy on a planted cue, against a clean twin's.

    Two copies of each model are trained on the spot, one on pictures with a cue that gives the answer away, one on the same
    pictures with a cue that says nothing. Example: attncompare study cheating --model demo/cnn --out runs/cheating
    """
    from dataclasses import asdict

    from attncompare.reporting.studies._folder import save_study
    from attncompare.reporting.studies.cheating import cheating_figure, cheating_maps_figure
    from attncompare.studies import CueTraining
    from attncompare.studies import cheating as study

    training = CueTraining(steps=steps, seed=seed)
    models, methods = tuple(model or ("demo/cnn", "demo/vit")), tuple(method or ("cheap",))
    with resumable("the steps that were saved are"), progress_bar() as progress:
        found = study(
            out, models=models, methods=methods, images=images, training=training, device=device, progress=progress
        )
    paths = save_study(
        out,
        "cheating",
        {"models": models, "methods": methods, "images": images, "training": asdict(training)},
        models=[one for pair in found.pairs for one in pair.models.values()],
        tables={
            "methods": found.methods,
            "accuracy": found.accuracy,
            "energies": found.energies,
            "refused": found.refused,
        },
        figures={"energy": cheating_figure(found), "maps": cheating_maps_figure(found)},
    )
    if as_json:
        typer.echo(found.methods.to_json(orient="records"))
        return
    typer.echo(found.accuracy.round(3).to_string(index=False))
    shown = [
        "model",
        "method",
        "cheating",
        "clean",
        "difference",
        "difference_low",
        "difference_high",
        "p_holm",
        "auroc",
    ]
    typer.echo(f"\nenergy on the cue, which covers {found.area:.4f} of the image\n")
    tell(found.methods[shown].round(3).to_string(index=False), paths)
