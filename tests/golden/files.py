"""The stored numbers: maps/MODEL.npz with one array per method, refusals.csv and scores.csv; always the same bytes."""

import csv
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from golden.values import Map, Score, ScoreKey

HERE = Path(__file__).parent
KEY = ["model", "method", "metric", "protocol", "image"]


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file, none where there is no file."""
    path = HERE / name
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def write_table(name: str, columns: list[str], rows: Iterable[tuple[object, ...]]) -> None:
    with (HERE / name).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def read_maps() -> dict[tuple[str, str], Map]:
    """(Model, method) -> maps, or the kind of refusal."""
    found: dict[tuple[str, str], Map] = {
        (row["model"], row["method"]): row["kind"] for row in read_table("refusals.csv")
    }
    for path in sorted((HERE / "maps").glob("*.npz")):
        with np.load(path) as stored:
            found |= {(path.stem, method): stored[method] for method in stored}
    return found


def write_maps(maps: Mapping[tuple[str, str], Map]) -> None:
    (HERE / "maps").mkdir(exist_ok=True)
    for model, pairs in groupby(sorted(maps), key=lambda pair: pair[0]):
        arrays = {method: maps[model, method] for _, method in pairs if not isinstance(maps[model, method], str)}
        np.savez_compressed(HERE / "maps" / f"{model}.npz", **arrays)
    refused = [(*pair, maps[pair]) for pair in sorted(maps) if isinstance(maps[pair], str)]
    write_table("refusals.csv", ["model", "method", "kind"], refused)


def number_or_word(text: str) -> Score:
    """A stored score, or why there is none."""
    return text if text.isalpha() else float(text)


def read_scores() -> dict[ScoreKey, Score]:
    rows = read_table("scores.csv")
    return {(*(r[c] for c in KEY[:-1]), int(r["image"])): number_or_word(r["value"]) for r in rows}


def write_scores(scores: Mapping[ScoreKey, Score]) -> None:
    rows = [(*key, value if isinstance(value, str) else f"{value:.9g}") for key, value in sorted(scores.items())]
    write_table("scores.csv", [*KEY, "value"], rows)
