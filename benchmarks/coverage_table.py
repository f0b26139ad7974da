"""What the coverage sweep found, as tables: coverage.csv, the summary, the README's table and `list models`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from coverage_checks import COLUMNS, SIGNALS
from coverage_models import Case

ROOT = Path(__file__).parent.parent
CAPABILITIES = ROOT / "attncompare" / "capabilities.csv"
README = ROOT / "README.md"
WORDS = {
    "features": "features",
    "classifier": "cam",
    "class_attention": "class-attention",
    "rollout": "rollout",
    "window_attention": "windows",
    "hierarchical_rollout": "hierarchy",
    "channel_attention": "gates",
}
"""Column of the table -> what `attncompare list models` calls it."""
ALWAYS = ("features", "gradients", "image_gradients", "black_box", "localised")
SHOWN = {
    "features, gradients, black box": ALWAYS,
    "cam": ("classifier",),
    "class attention": ("class_attention",),
    "rollout": ("rollout",),
    "windows": ("window_attention",),
    "hierarchical rollout": ("hierarchical_rollout",),
    "gates": ("channel_attention",),
}
"""Column of the README -> the columns that must be good."""


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of an earlier sweep by "library/model"."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {f"{row['library']}/{row['model']}": row for row in csv.DictReader(file)}


def write_rows(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """The table, sorted."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def capabilities_of(row: Mapping[str, str]) -> str:
    """What a model supplies, in the words of WORDS; "-" when it is refused altogether."""
    found = [word for column, word in WORDS.items() if row[column] == "ok"]
    return " ".join([*found, *(["embedding"] if row["output"] == "embedding" else [])]) or "-"


def write_capabilities(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """One line per torchvision and timm model that ran to its end."""
    done = [row for row in rows if row["library"] != "transformers" and "failed: over" not in row["logits_difference"]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "capabilities"])
        writer.writerows(sorted([f"{row['library']}/{row['model']}", capabilities_of(row)] for row in done))


# The README's table


def _good(row: Mapping[str, str], columns: Sequence[str]) -> bool:
    return all(row[column].partition(":")[0] in ("ok", "none") for column in columns)


def _group(case: Case) -> str:
    if case.library != "transformers":
        return case.library
    from tiny_transformers import CLASSIFIERS

    return f"transformers, {'classifiers' if case.name in CLASSIFIERS else 'backbones and pairs'}"


def readme_table(rows: Iterable[Mapping[str, str]], cases: Sequence[Case]) -> str:
    """Per library how many models supply what, of those that were measured; timm also by model file."""
    found = {f"{row['library']}/{row['model']}": row for row in rows}
    groups: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        groups.setdefault(_group(case), {}).setdefault(case.name, []).append(case)
        if case.library == "timm" and not case.name.startswith("test_"):
            groups.setdefault("timm, by model file", {}).setdefault(case.file, []).append(case)
    lines = []
    for name, units in sorted(groups.items()):
        measured = {unit: [found[c.key] for c in own if c.key in found] for unit, own in units.items()}
        counts = [
            sum(any(_good(row, columns) for row in own) for own in measured.values()) for columns in SHOWN.values()
        ]
        failed = sum(
            any(row[column].startswith("failed") for column in SIGNALS) for own in measured.values() for row in own
        )
        present = sum(map(bool, measured.values()))
        share = f"{counts[0]} ({100 * counts[0] / len(units):.0f} %)"
        lines.append([name, f"{present} of {len(units)}", share, *map(str, counts[1:]), str(failed)])
    return _markdown(["", "measured", *SHOWN, "failed"], lines)


def write_readme(path: Path, rows: Iterable[Mapping[str, str]], cases: Sequence[Case]) -> None:
    """Put the table between the marks."""
    first, last, text = "<!-- coverage -->", "<!-- /coverage -->", path.read_text()
    if text.count(first) != 1 or text.count(last) != 1:
        raise SystemExit(f"{path.name} needs one line {first} before the table and one {last} behind it")
    before, rest = text.split(first)
    path.write_text(f"{before}{first}\n{readme_table(rows, cases)}\n{last}{rest.split(last)[1]}")


# The summary


def _count(cells: pd.Series) -> str:
    kinds = cells.str.partition(":")[0].value_counts()
    ok, refused, failed = (int(kinds.get(kind, 0)) for kind in ("ok", "refused", "failed"))
    return f"{ok} / {refused} / {failed} ({100 * ok / len(cells):.0f} %)"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(table: pd.DataFrame) -> str:
    """Two markdown tables: per library what is ok, refused and failed, and the reasons with examples."""
    columns = [*SIGNALS, "localised"]
    per_library = [
        [str(library), str(len(part)), *(_count(part[column]) for column in columns)]
        for library, part in table.groupby("library")
    ]
    long = table.melt(["library", "model"], columns, "signal", "cell")
    long = long[long["cell"] != "ok"]
    reasons = [
        [
            str(text).replace("|", "\\|"),
            ", ".join(sorted(set(part["signal"]))),
            str(part["model"].nunique()),
            ", ".join(sorted(set(part["model"]))[:3]),
        ]
        for text, part in sorted(long.groupby("cell"), key=lambda item: -item[1]["model"].nunique())
    ]
    first = _markdown(["library", "models", *columns], per_library)
    second = _markdown(["reason", "signals", "models", "such as"], reasons)
    return f"ok / refused / failed (share ok)\n\n{first}\n\n{second}"
