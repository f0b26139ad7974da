"""Files of `attncompare explain --layers` and `--top`: a folder per image, figures and maps in it, one table beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attncompare.models.adapter import ModelAdapter
from attncompare.reporting.studies._folder import save_study
from attncompare.reporting.studies.first_choices import top_classes_figure
from attncompare.reporting.studies.layers import layers_figure
from attncompare.storage.folder import npz_of, write_atomically
from attncompare.storage.names import folder_of, slug
from attncompare.studies.first_choices import TopClasses
from attncompare.studies.layer_responses import LayerStudy

Arrays = dict[str, Any]


def save_layers(
    out: Path, found: Sequence[LayerStudy], settings: Mapping[str, Any], models: Sequence[ModelAdapter]
) -> list[Path]:
    """Write layers.csv, and IMAGE/layers-MODEL as PDF, PNG and NPZ; returns the paths, study.json first.

    The NPZ holds the names `layers` and for the n-th of them mean{n} (h,w), index{n} (K,) and strongest{n} (K,h,w).
    """
    figures: dict[str, Figure] = {}
    maps: dict[str, Arrays] = {}
    for study in found:
        for row, image in enumerate(study.pictures.names):
            place = f"{folder_of(image)}/layers-{slug(study.model)}"
            figures[place] = layers_figure(study, row)
            maps[place] = {"layers": np.array([one.layer for one in study.layers])}
            for number, one in enumerate(study.layers):
                for name in ("mean", "index", "strongest"):
                    maps[place][f"{name}{number}"] = getattr(one, name)[row]
    tables = {"layers": pd.concat([study.table() for study in found], ignore_index=True)}
    paths = save_study(out, "layers of images", settings, models=models, tables=tables, figures=figures)
    return [*paths, *(_save_arrays(out / f"{place}.npz", arrays) for place, arrays in maps.items())]


def save_top_classes(
    out: Path, found: Sequence[TopClasses], settings: Mapping[str, Any], models: Sequence[ModelAdapter]
) -> list[Path]:
    """Write top-classes.csv, and IMAGE/top-METHOD-MODEL as PDF, PNG and NPZ; returns the paths, study.json first.

    The NPZ holds target (k,), names (k,), probability (k,) and maps (k,h,w), the most probable class first.
    """
    figures: dict[str, Figure] = {}
    maps: dict[str, Arrays] = {}
    for one in found:
        for row, image in enumerate(one.pictures.names):
            place = f"{folder_of(image)}/top-{one.method}-{slug(one.model)}"
            figures[place] = top_classes_figure(one, row)
            maps[place] = {"target": one.target[row], "names": np.array(one.names[row])}
            maps[place] |= {"probability": one.probability[row], "maps": one.maps[row]}
    tables = {"top-classes": pd.concat([one.table() for one in found], ignore_index=True)}
    paths = save_study(out, "top classes of images", settings, models=models, tables=tables, figures=figures)
    return [*paths, *(_save_arrays(out / f"{place}.npz", arrays) for place, arrays in maps.items())]


def _save_arrays(path: Path, arrays: Arrays) -> Path:
    write_atomically(path, npz_of(arrays))
    return path
