"""attncompare explain --layers and --top: figures of the inside of models on some images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from attncompare.cli.running import tell
from attncompare.errors import AttnCompareError, SpecError

if TYPE_CHECKING:
    import pandas as pd

    from attncompare.data.datasets import Dataset
    from attncompare.models.adapter import ModelAdapter

T = TypeVar("T")
CHANNELS = 3


@dataclass(frozen=True)
class Asked:
    """What was asked of `explain`."""

    images: Sequence[Path]
    models: Sequence[str]
    methods: Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    out: Path
    device: str
    seed: int

    def load(self) -> "tuple[list[ModelAdapter], Dataset]":
        """The models and the images."""
        from attncompare.data.datasets import open_dataset
        from attncompare.models.load import load_model

        dataset = open_dataset(tuple(str(path) for path in self.images))
        return [load_model(name, device=self.device) for name in self.models], dataset


def explain_layers(asked: Asked, layers: list[str] | None, channels: int | None) -> None:
    """What each layer responds to: figures, maps and the table."""
    from attncompare import studies
    from attncompare.reporting.studies.inside import save_layers

    for name in (*asked.methods, *asked.options):
        if name != "activation":
            raise SpecError(
                f"--layers shows activation, not {name}; a layer of another method: --option METHOD.layer=PATH"
            )
    if asked.options:
        raise SpecError("--layers names the layers; leave out --option activation.layer")
    count = CHANNELS if channels is None else channels
    models, dataset = asked.load()
    found = _where_possible([partial(studies.layers, one, dataset, layers, count) for one in models])
    _name_unreadable(found[0].pictures.unreadable)
    settings = {"images": list(dataset.names), "layers": layers, "channels": count}
    paths = save_layers(asked.out, found, settings, models)
    tell(_text([one.table() for one in found]), paths)


def explain_top(asked: Asked, top: int) -> None:
    """The maps of each model's first choices: figures, maps and the table."""
    from attncompare import studies
    from attncompare.reporting.studies.inside import save_top_classes

    requests = [(name, _options(asked, name)) for name in asked.methods or ("cam",)]
    for name in asked.options:
        if name not in dict(requests):
            raise SpecError(f"--option of {name}, which is not asked for; add --method {name}")
    models, dataset = asked.load()
    runs = [partial(studies.top_classes, one, dataset, wanted, top) for one in models for wanted in requests]
    found = _where_possible(runs)
    _name_unreadable(found[0].pictures.unreadable)
    settings = {"images": list(dataset.names), "top": top, "methods": dict(requests)}
    paths = save_top_classes(asked.out, found, settings, models)
    tell(_text([one.table() for one in found]), paths)


def _options(asked: Asked, name: str) -> dict[str, Any]:
    """The options given for a method; one that has a seed takes the command's."""
    from attncompare.methods._base import methods

    seeded = any(option.name == "seed" for option in methods.get(name).options)
    return {**({"seed": asked.seed} if seeded else {}), **asked.options.get(name, {})}


def _where_possible(runs: Sequence[Callable[[], T]]) -> list[T]:
    """What could be computed; what was refused is said on stderr, and raised where nothing else is left."""
    found, refused = [], list[AttnCompareError]()
    for run in runs:
        try:
            found.append(run())
        except AttnCompareError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for refusal in refused:
        typer.echo(f"unsupported: {refusal}", err=True)
    return found


def _name_unreadable(unreadable: Mapping[str, str]) -> None:
    for reason in unreadable.values():
        typer.echo(f"left out: {reason}", err=True)


def _text(tables: "Sequence[pd.DataFrame]") -> str:
    import pandas as pd

    whole = pd.concat(tables, ignore_index=True)
    return str(whole.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="–"))
