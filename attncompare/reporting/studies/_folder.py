"""The folder of a study: what was done in study.json, numbers as CSV, figures."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from attncompare import __version__, tuning
from attncompare.environment import environment
from attncompare.models.adapter import ModelAdapter
from attncompare.reporting.figures import save_figure
from attncompare.reporting.spreadsheet import frame_as_csv
from attncompare.storage.folder import write_atomically


def save_study(
    out: Path,
    study: str,
    settings: Mapping[str, Any],
    *,
    models: Iterable[ModelAdapter] = (),
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
) -> list[Path]:
    """Write study.json, one CSV per table and a PDF and a PNG per figure; returns the paths, study.json first.

    settings: everything that decides the numbers, as JSON can hold it. models: for their names and weights' hashes.
    """
    models = list(models)
    device = str(models[0].device) if models else "cpu"
    about = {
        "study": study,
        "attncompare": __version__,
        "settings": dict(settings),
        "models": {model.name: model.describe() | {"weights_hash": model.weights_hash} for model in models},
        "environment": environment(device) | {"tuning": tuning.describe()},
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "study.json", *(out / f"{name}.csv" for name in tables)]
    texts = [json.dumps(about, indent=2, default=str), *(frame_as_csv(table) for table in tables.values())]
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, text.encode())
    return paths + [
        save_figure(drawn, out / f"{name}{end}") for name, drawn in figures.items() for end in (".pdf", ".png")
    ]
