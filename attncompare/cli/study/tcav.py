"""attncompare study tcav."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attncompare.cli.options import Device, Json, Layers, Seed, parse_layers
from attncompare.cli.running import progress_bar, tell
from attncompare.errors import SpecError

if TYPE_CHECKING:
    from attncompare.models.adapter import ModelAdapter

SHAPES = "shapes"
OWN = (f"{SHAPES}:stripes", f"{SHAPES}:arcs", f"{SHAPES}:tips")


def tcav(
    model: Annotated[str, typer.Option("--model", "-m", help="A model.")] = "demo/cnn",
    target: Annotated[str, typer.Option(help="The class: its index or its name.")] = "star",
    concept: Annotated[
        list[str] | None, typer.Option(help="A folder of images, or shapes:NAME (stripes, arcs, tips, arms); repeat.")
    ] = None,
    random: Annotated[
        list[str] | None, typer.Option(help="A folder that is dealt into ten sets, ten folders or more, or shapes.")
    ] = None,
    data: Annotated[str, typer.Option(help="Images of the class: a folder, or shapes.")] = SHAPES,
    layers: Layers = None,
    limit: Annotated[int, typer.Option(help="Images of the class and of a shapes concept, at most.")] = 40,
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("runs/tcav"),
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Test whether a class uses concepts that are shown by examples (TCAV), against sets of random images.

    Example: attncompare study tcav --model demo/vit --target star --concept striped/ --random others/ --data stars/
    """
    from attncompare.models.load import load_model
    from attncompare.reporting.studies._folder import save_study
    from attncompare.reporting.studies.concepts import concepts_figure
    from attncompare.studies import tcav as study

    loaded, given = load_model(model, device=device), concept or list(OWN)
    index = int(target) if target.isdigit() else loaded.class_index(target.removeprefix("class:"))
    name = loaded.class_name(index)
    concepts = {_name(one): _pictures(one, name, limit) for one in given}
    if len(concepts) < len(given):
        raise SpecError(f"concepts {', '.join(given)}: two have one name; rename a folder")
    pool = [_pictures(one, name, 10 * limit, start=100_000) for one in random or [SHAPES]]
    images = _of_class(data, index, limit, loaded)
    with progress_bar() as progress:
        random_sets = pool[0] if len(pool) == 1 else pool
        found = study(loaded, images, index, concepts, random_sets, parse_layers(layers), seed=seed, progress=progress)
    about = {
        "target": target,
        "concepts": given,
        "random": random or [SHAPES],
        "data": data,
        "limit": limit,
        "seed": seed,
    }
    saved = save_study(
        out,
        "tcav",
        about | {"layers": found.layers, "images": found.images, "set_size": found.size},
        models=[loaded],
        tables={"concepts": found.table, "runs": found.runs},
        figures={"concepts": concepts_figure(found)},
    )
    if as_json:
        typer.echo(found.table.to_json(orient="records"))
        return
    tell(found.table.drop(columns="p_runs").round(3).to_string(index=False), saved)


def _name(concept: str) -> str:
    return concept.partition(":")[2] if concept.startswith(f"{SHAPES}:") else Path(concept).resolve().name


def _pictures(source: str, without: str, count: int, start: int = 0) -> Any:
    """A folder as it is; pictures of the shape set without the class that is asked about."""
    from attncompare.data.shape_concepts import concept_pictures
    from attncompare.data.shapes import CLASS_NAMES

    if source != SHAPES and not source.startswith(f"{SHAPES}:"):
        return source
    concept = source.partition(":")[2] or None
    return concept_pictures(concept, count, without=without if without in CLASS_NAMES else None, start=start)


def _of_class(data: str, index: int, limit: int, model: "ModelAdapter") -> Any:
    """Images of a folder, all of them of the class; those of the shape set that show it."""
    from attncompare.data.datasets import open_dataset

    if data != SHAPES:
        folder = open_dataset(data, limit)
        return [folder.load(name).image for name in folder.names]
    samples = open_dataset(SHAPES)
    if model.class_name(index) not in (samples.class_names or ()):
        raise SpecError(f"data shapes has no class {model.class_name(index)!r}; give a folder of images of it")
    wanted = (samples.class_names or ()).index(model.class_name(index))
    shown = (samples.load(name) for name in samples.names)
    of_class = (one.image for one in shown if one.label == wanted)
    return [image for image, _ in zip(of_class, range(limit), strict=False)]
