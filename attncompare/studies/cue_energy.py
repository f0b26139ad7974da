"""How much of a map lies on a cue, on a model that may cheat with it and on its honest twin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests
from torch import Tensor

from attncompare.benchmark.explained import explain_cells, maps_of
from attncompare.benchmark.plan import Cell
from attncompare.benchmark.statistics import cliffs_delta, mean_interval, paired_p
from attncompare.capture.target import Target
from attncompare.errors import Failure, SpecError, UnsupportedMethodError
from attncompare.explain import make_job
from attncompare.maps import resize_map
from attncompare.methods._base import methods as known_methods
from attncompare.metrics.energy_inside import energy_inside
from attncompare.models.adapter import ModelAdapter

BATCH = 16
SHOWN = 4  # images whose maps are kept


def supported(model: ModelAdapter, names: str | Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The methods that give maps over the image of this model, and the others with the reason.

    names: "cheap" (all but the expensive ones), "all", or names of methods.
    """
    groups = {"all": known_methods.names(), "cheap": [one.name for one in known_methods if not one.expensive]}
    wanted = [names] if isinstance(names, str) else list(names)
    taken, refused = [], {}
    for name in dict.fromkeys(method for one in wanted for method in groups.get(one, [one])):
        try:
            make_job(model, name)
        except UnsupportedMethodError as error:
            refused[name] = str(error)
            continue
        if known_methods.get(name).space == "image":
            taken.append(name)
        else:
            refused[name] = f"{name} gives one value per channel, which lies nowhere in the image"
    return taken, refused


@dataclass(frozen=True)
class OnCue:
    """What the methods gave on one model.

    energies: method -> (B,) share of the map's positive part inside the mask, NaN where there is no map or none of it is
    positive. maps: method -> the maps (h,w) of the first images, or the reason why there is none. failed: method -> reason,
    of those without any energy.
    """

    energies: Mapping[str, NDArray[np.float64]]
    maps: Mapping[str, list[Tensor | Failure]]
    failed: Mapping[str, str]


def energy_on(model: ModelAdapter, images: Tensor, target: Target, mask: Tensor, methods: Sequence[str]) -> OnCue:
    """Explain images and measure the energy inside a mask, in batches.

    images: (B,3,H,W) in [0, 1]. mask: (H,W) or (B,H,W) bool. target: (B,) classes, or None for the model's own.
    """
    masks = mask.expand(len(images), *mask.shape[-2:])
    cells = [Cell(known_methods.get(name), make_job(model, name).options, name) for name in methods]
    maps: dict[str, list[Tensor | Failure]] = {name: [] for name in methods}
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        aim = target[part] if isinstance(target, Tensor) else target
        for name, found in maps_of(explain_cells(model, cells, images[part], aim, lambda *_: None)).items():
            maps[name] += found
    energies = {name: np.array([_energy(*pair) for pair in zip(maps[name], masks, strict=True)]) for name in methods}
    failed = {name: _why(maps[name]) for name in methods if np.isnan(energies[name]).all()}
    kept = {name: values for name, values in energies.items() if name not in failed}
    return OnCue(kept, {name: maps[name][:SHOWN] for name in kept}, failed)


def _energy(values: Tensor | Failure, mask: Tensor) -> float:
    if isinstance(values, Failure):
        return float("nan")
    size = (int(mask.shape[0]), int(mask.shape[1]))
    return float(energy_inside(resize_map(values[None], size), mask[None].cpu()))


def _why(maps: Sequence[Tensor | Failure]) -> str:
    return next((one.reason for one in maps if isinstance(one, Failure)), "no map has a positive value")


def cue_energies(
    cheating: ModelAdapter,
    clean: ModelAdapter,
    images: Tensor,
    mask: Tensor,
    *,
    target: Target = None,
    methods: str | Sequence[str] = "cheap",
) -> pd.DataFrame:
    """The energies on a cue of two models of your own on the same images, for `compare_energies`.

    images: (B,3,H,W) in [0, 1] at the size of both. mask: (H,W) or (B,H,W) bool, where the cue lies. target: what the maps
    explain, see `explain_together`. methods: names, "cheap" or "all"; those that one of them does not support are left out.
    Columns: model, method, role, image, energy (NaN for a map without a positive value).

    >>> import torch
    >>> import attncompare as ac
    >>> corner = torch.zeros(64, 64, dtype=torch.bool)
    >>> corner[:8, :8] = True
    >>> models = ac.load_model("demo/cnn@random"), ac.load_model("demo/cnn")
    >>> found = cue_energies(*models, torch.rand(3, 3, 64, 64), corner, methods=["cam", "saliency"])
    >>> found.groupby(["method", "role"]).size().tolist()
    [3, 3, 3, 3]
    """
    if cheating.size != clean.size:
        raise SpecError(f"{cheating.name} takes {cheating.size} pixels, {clean.name} {clean.size}; one size is needed")
    both = [name for name in supported(cheating, methods)[0] if name in supported(clean, methods)[0]]
    energies = {
        role: energy_on(model, images, target, mask, both).energies
        for role, model in (("cheating", cheating), ("clean", clean))
    }
    return as_table(energies, f"{cheating.name} and {clean.name}")


def as_table(energies: Mapping[str, Mapping[str, NDArray[np.float64]]], model: str) -> pd.DataFrame:
    """Role -> method -> (B,) energies, as one row per value."""
    rows = [
        (model, method, role, image, value)
        for role, by_method in energies.items()
        for method, values in by_method.items()
        for image, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["model", "method", "role", "image", "energy"])


def compare_energies(energies: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per model and method: mean energy of both roles, their difference on the same images, and what it tells.

    Columns: n images on which both maps have a positive value, cheating and clean with 95 % bootstrap intervals (_low,
    _high), difference (cheating - clean, low, high), p_holm (Wilcoxon's signed ranks, Holm over the methods of the model),
    auroc (how often an image of the cheating model has more energy on the cue than one of the clean model), control.
    The largest difference comes first, controls last.
    """
    rows = []
    for model, of_model in energies.groupby("model", sort=False):
        tables = {
            method: group.pivot(index="image", columns="role", values="energy").dropna()
            for method, group in of_model.groupby("method", sort=False)
        }
        found = [
            {"model": model, "method": name, **_compared(table, seed)} for name, table in tables.items() if len(table)
        ]
        corrected = multipletests([row["p"] for row in found], method="holm")[1] if found else []
        rows += [row | {"p_holm": float(p)} for row, p in zip(found, corrected, strict=True)]
    if not rows:
        raise SpecError("no method has a map with a positive value on both models; nothing can be compared")
    table = pd.DataFrame(rows).drop(columns="p")
    control = [known_methods.get(name).control for name in table.method]
    order = ["model", "control", "difference"]
    return table.assign(control=control).sort_values(order, ascending=[True, True, False], ignore_index=True)


def _compared(table: pd.DataFrame, seed: int) -> dict[str, float]:
    """The figures of one method: (image x role) energies."""
    row: dict[str, float] = {"n": len(table)}
    cheating, clean = (table[role].to_numpy(dtype=np.float64) for role in ("cheating", "clean"))
    for name, values in (("cheating", cheating), ("clean", clean), ("difference", cheating - clean)):
        low, high = mean_interval(values, seed)
        row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return row | {"auroc": (1 + cliffs_delta(cheating, clean)) / 2, "p": paired_p(cheating - clean)}
