"""attncompare study layers."""

from pathlib import Path
from typing import Annotated

import typer

from attncompare.cli.options import Device, Json, Models
from attncompare.cli.running import progress_bar, tell


def layers(
    model: Models = None,
    data: Annotated[
        str, typer.Option(help="shapes (labels and masks are known), photos, or a folder of images.")
    ] = "shapes",
    limit: Annotated[int, typer.Option(help="Use only so many images.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("runs/layers"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure how the activation of the layers changes with depth: edges, object, sparsity, area, entropy.

    Of transformers also how far each head looks (mean attention distance). Prints the trends with intervals over images.

    Example: attncompare study layers --model demo/cnn --model demo/vit --data shapes --limit 100 --out runs/layers
    """
    from attncompare import studies
    from attncompare.data.datasets import open_dataset
    from attncompare.models.load import load_model
    from attncompare.reporting.studies._folder import save_study
    from attncompare.reporting.studies.layer_trends import distance_figure, trends_figure
    from attncompare.reporting.studies.layers import layers_figure
    from attncompare.storage.names import slug

    names = model or ["demo/cnn", "demo/vit"]
    dataset = open_dataset(data, limit)
    models = [load_model(name, device=device) for name in names]
    with progress_bar() as progress:
        found = studies.layer_trends(models, dataset, progress=progress)
    for name, reason in found.unreadable.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    trends = found.trends()
    tables = {"layer-trends": trends, "layer-means": found.means(), "layer-values": found.values}
    figures = {"layer-trends": trends_figure(found)}
    if not found.heads.empty:
        tables["attention-distance"] = found.heads
        figures["attention-distance"] = distance_figure(found)
    first = next(name for name in dataset.names if name not in found.unreadable)
    for one in models:
        study = studies.layers(one, open_dataset(data, dataset.names.index(first) + 1))
        figures[f"layers-{slug(one.name)}"] = layers_figure(study, len(study.pictures.names) - 1)
    settings = {"data": data, "limit": limit, "images": len(dataset.names) - len(found.unreadable)}
    paths = save_study(out, "layers", settings, models=models, tables=tables, figures=figures)
    if as_json:
        typer.echo(trends.to_json(orient="records"))
        return
    tell(trends.to_string(index=False, float_format=lambda value: f"{value:.3f}"), paths)
