"""attncompare study invert."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Device, Json, Layers, Seed, parse_layers
from attncompare.cli.running import progress_bar, tell


def invert(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model.")] = "demo/cnn",
    layers: Layers = None,
    steps: Annotated[int, typer.Option(help="Steps of Adam for each layer.")] = 400,
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("runs/invert"),
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show what layers keep of an image: for each, another image that it cannot tell from the first.

    Example: attncompare study invert cat.png --model demo/vit --layers blocks.0,blocks.5 --out runs/invert
    """
    from attncompare.data.images import load_images
    from attncompare.models.load import load_model
    from attncompare.reporting.studies._folder import save_study
    from attncompare.reporting.studies.inversion import inversion_figure
    from attncompare.studies import invert as study

    loaded = load_model(model, device=device)
    with progress_bar() as progress:
        found = study(
            loaded, load_images([image], loaded), parse_layers(layers), steps=steps, seed=seed, progress=progress
        )
    saved = save_study(
        out,
        "invert",
        {"image": str(image), "layers": found.layers, "steps": steps, "seed": seed},
        models=[loaded],
        tables={"inversion": found.table(), "curves": found.curves()},
        figures={"inversion": inversion_figure(found)},
    )
    table = found.table()
    if as_json:
        typer.echo(table.to_json(orient="records"))
        return
    tell(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"), saved)
