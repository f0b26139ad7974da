"""What stands in a table, whatever its format."""

import math
from dataclasses import dataclass

import pandas as pd

from attncompare.benchmark.rankings import score_table
from attncompare.benchmark.statistics import alike
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery

HEADS = {
    "latency_median": "ms",
    "latency_ratio": "x fwd",
    "passes_forward": "fwd",
    "passes_backward": "bwd",
    "peak_bytes": "MB",
    "logit_deviation": "logits",
}
"""Timing measure -> head of its column; measures of a further variant carry its name behind theirs."""

SCALE = {"latency_median": 1e3, "peak_bytes": 1e-6}
UNITS = {
    "latency_median": "ms: median latency at batch {batch}",
    "latency_ratio": "x fwd: multiple of the plain forward pass",
    "passes_forward": "fwd: forward passes per image",
    "passes_backward": "bwd: backward passes per image",
    "peak_bytes": "MB: peak memory beyond the loaded model",
    "logit_deviation": "logits: largest difference of a logit from float32",
}


def head(measure: str) -> str:
    """The head of a column.

    >>> head("latency_median"), head("latency_median bf16"), head("insertion")
    ('ms', 'ms bf16', 'insertion')
    """
    base, space, variant = measure.partition(" ")
    return HEADS.get(base, base) + space + variant


def is_timing(measure: str) -> bool:
    """Whether a column is of the timing pass."""
    return measure.partition(" ")[0] in HEADS


@dataclass(frozen=True)
class Entry:
    """One cell. low, high: bootstrap 95 % interval; place: 1 for the best, 2 for the second, else 0, by the printed digits.

    alike: it does not differ from the best at the 5 % level.
    """

    measure: str
    mean: float
    low: float
    high: float
    n: int
    place: int = 0
    alike: bool = False

    @property
    def number(self) -> str:
        """The mean as it is printed."""
        return number(self.mean, self.measure)

    @property
    def half(self) -> str:
        """Half the width of the interval as it is printed; "" for costs."""
        half = (self.high - self.low) / 2
        return "" if is_timing(self.measure) or math.isnan(half) else number(half, self.measure)


@dataclass(frozen=True)
class Row:
    """A method and its cells, None where it has no value."""

    method: str
    entries: list[Entry | None]


@dataclass(frozen=True)
class Content:
    """sections: model -> its rows, controls last. notes: the sentences of the caption."""

    columns: list[str]
    sections: dict[str, list[Row]]
    notes: list[str]

    @property
    def marked(self) -> bool:
        """Whether any cell says that it does not differ from the best."""
        return any(e is not None and e.alike for rows in self.sections.values() for row in rows for e in row.entries)


def number(value: float, measure: str) -> str:
    """A value with as many digits as mean something.

    >>> number(0.0123, "latency_median"), number(2.0, "passes_forward"), number(0.12345, "deletion")
    ('12.3', '2', '0.123')
    """
    base = measure.partition(" ")[0]
    if base == "logit_deviation":
        return f"{value:.0e}"
    digits = 0 if base.startswith("passes") else 1 if base in HEADS else 3
    return f"{value * SCALE.get(base, 1):.{digits}f}"


def content(run: Gallery) -> Content:
    """All means of a run with what a reader needs to judge them."""
    columns = [*run.metric_names(), *run.timing_names(list(HEADS))]
    rows = run.summary[(run.summary.n > 0) & run.summary.measure.isin(columns)]
    sections = {model: _section(run, rows[rows.model == model], columns) for model in run.models}
    found = Content(columns, {model: section for model, section in sections.items() if section}, [])
    return Content(columns, found.sections, _notes(run, found))


def _section(run: Gallery, rows: pd.DataFrame, columns: list[str]) -> list[Row]:
    names = sorted(set(rows.method), key=lambda name: (methods.get(name).control, name))
    filled = {measure: _column(run, rows[rows.measure == measure], measure) for measure in columns}
    return [Row(name, [filled[measure].get(name) for measure in columns]) for name in names]


def _column(run: Gallery, rows: pd.DataFrame, measure: str) -> dict[str, Entry]:
    """Method -> its cell of one measure on one model."""
    if not len(rows):
        return {}
    places: dict[str, int] = {}
    same: list[str] = []
    if measure in metrics.names():
        lower = metrics.get(measure).better == "lower"
        ranks = rows["mean"].map(lambda value: float(number(value, measure))).rank(method="min", ascending=lower)
        places = {name: int(rank) for name, rank in zip(rows.method, ranks, strict=True) if rank <= 2}
        best = rows.sort_values("mean", ascending=lower, kind="stable").method.iloc[0]
        same = alike(score_table(run.records, str(rows.model.iloc[0]), measure), best)
    found = {}
    for name, row in rows.set_index("method").to_dict("index").items():
        values = row["mean"], row["low"], row["high"], row["n"]
        found[str(name)] = Entry(
            measure, *values, place=places.get(str(name), 0), alike=name in same and places.get(str(name)) != 1
        )
    return found


def _notes(run: Gallery, found: Content) -> list[str]:
    spec: dict[str, object] = run.manifest["spec"]  # type: ignore[assignment]
    environment: dict[str, object] = run.manifest["environment"]  # type: ignore[assignment]
    scores = [
        e for rows in found.sections.values() for row in rows for e in row.entries if e and not is_timing(e.measure)
    ]
    counts = sorted({entry.n for entry in scores})
    what = f"{run.manifest['images']} images of '{spec['data']}', protocol {spec['protocol']}, "
    if spec.get("timing_only"):
        what = f"First images of '{spec['data']}', timed and not scored, "
    if spec.get("dtype", "float32") != "float32":
        what += f"scored in {spec['dtype']}, "
    if spec.get("backend", "torch") != "torch":
        what += f"scored by {spec['backend']}, "
    where = f"{environment['device']}, {environment['threads']} threads"
    notes = [f"{what}target {spec['target']}, seed {spec['seed']}, {where}"]
    if counts:
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} (failures left out)"
        notes.append(
            f"Scores have no unit: mean ± half the bootstrap 95 % interval, n = {n}; best bold, second underlined"
        )
    if found.marked:
        notes.append(
            "†: no significant difference from the best "
            "(Wilcoxon's signed-rank test on the same images, Holm over the methods, 5 %)"
        )
    units = [
        UNITS[name].format(batch=spec["timing_batch"])
        for name in UNITS
        if name in {c.partition(" ")[0] for c in found.columns}
    ]
    return [*notes, "Costs: " + "; ".join(units)] if units else notes
