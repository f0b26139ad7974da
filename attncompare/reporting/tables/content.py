"""What stands in a table, whatever its format."""

import math
from dataclasses import dataclass

import pandas as pd

from attncompare.benchmark.rankings import score_table
from attncompare.benchmark.statistics import alike
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.counts import failures, some

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
ALIKE, FAILED, CONSTANT = "†", "‡", "§"
"""What is put behind a cell that does not differ from the best, one with failed values, and a method with constant maps."""
NO_VALUE = "–"


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

    n, failed: how many values the mean is of, and how many failed. alike: it does not differ from the best at the 5 % level.
    """

    measure: str
    mean: float
    low: float
    high: float
    n: int
    failed: int = 0
    place: int = 0
    alike: bool = False

    @property
    def number(self) -> str:
        """The mean as it is printed; a dash where all values failed."""
        return number(self.mean, self.measure) if self.n else NO_VALUE

    @property
    def half(self) -> str:
        """Half the width of the interval as it is printed; "" for costs."""
        half = (self.high - self.low) / 2
        return "" if is_timing(self.measure) or math.isnan(half) else number(half, self.measure)

    @property
    def marks(self) -> str:
        """What is put behind the number."""
        return ALIKE * self.alike + FAILED * (self.failed > 0)


@dataclass(frozen=True)
class Row:
    """A method and its cells, None where there was nothing to compute. constant: on how many images its map is constant."""

    method: str
    entries: list[Entry | None]
    constant: int = 0

    @property
    def marks(self) -> str:
        """What is put behind the name."""
        return CONSTANT * (self.constant > 0)


@dataclass(frozen=True)
class Content:
    """sections: model -> its rows, controls last. notes: the sentences of the caption."""

    columns: list[str]
    sections: dict[str, list[Row]]
    notes: list[str]

    @property
    def rows(self) -> list[Row]:
        """The rows of all models."""
        return [row for rows in self.sections.values() for row in rows]

    @property
    def marked(self) -> bool:
        """Whether any cell says that it does not differ from the best."""
        return any(e is not None and e.alike for row in self.rows for e in row.entries)


def number(value: float, measure: str) -> str:
    """A value with as many digits as mean something: of a metric without an upper bound three at least, however small.

    >>> number(0.0123, "latency_median"), number(2.0, "passes_forward"), number(0.12345, "deletion")
    ('12.3', '2', '0.123')
    >>> number(0.00012345, "infidelity"), number(0.00012345, "deletion")
    ('0.000123', '0.000')
    """
    base = measure.partition(" ")[0]
    if base == "logit_deviation":
        return f"{value:.0e}"
    if base in metrics.names() and metrics.get(base).bounds[1] == math.inf and 0 < abs(value) < 0.1:
        return f"{value:#.3g}"
    digits = 0 if base.startswith("passes") else 1 if base in HEADS else 3
    return f"{value * SCALE.get(base, 1):.{digits}f}"


def content(run: Gallery) -> Content:
    """All means of a run, and what failed, with what a reader needs to judge them."""
    columns = [*run.metric_names(failed=True), *run.timing_names(list(HEADS), failed=True)]
    rows = run.computed[run.computed.measure.isin(columns)]
    sections = {model: _section(run, rows[rows.model == model], columns) for model in run.models}
    found = Content(columns, {model: section for model, section in sections.items() if section}, [])
    return Content(columns, found.sections, _notes(run, found))


def _section(run: Gallery, rows: pd.DataFrame, columns: list[str]) -> list[Row]:
    names = sorted(set(rows.method), key=lambda name: (methods.get(name).control, name))
    filled = {measure: _column(run, rows[rows.measure == measure], measure) for measure in columns}
    constant = rows.loc[[not is_timing(name) for name in rows.measure]].groupby("method").degenerate.max()
    return [Row(name, [filled[measure].get(name) for measure in columns], int(constant.get(name, 0))) for name in names]


def _column(run: Gallery, rows: pd.DataFrame, measure: str) -> dict[str, Entry]:
    """Method -> its cell of one measure on one model."""
    places: dict[str, int] = {}
    same: list[str] = []
    valued = rows[rows.n > 0]
    if len(valued) and measure in metrics.names():
        lower = metrics.get(measure).better == "lower"
        ranks = valued["mean"].map(lambda value: float(number(value, measure))).rank(method="min", ascending=lower)
        places = {name: int(rank) for name, rank in zip(valued.method, ranks, strict=True) if rank <= 2}
        best = valued.sort_values("mean", ascending=lower, kind="stable").method.iloc[0]
        same = alike(score_table(run.records, str(valued.model.iloc[0]), measure), best)
    found = {}
    for name, row in rows.set_index("method").to_dict("index").items():
        values = row["mean"], row["low"], row["high"], row["n"], row["failed"]
        found[str(name)] = Entry(
            measure, *values, place=places.get(str(name), 0), alike=name in same and places.get(str(name)) != 1
        )
    return found


def _notes(run: Gallery, found: Content) -> list[str]:
    spec: dict[str, object] = run.manifest["spec"]  # type: ignore[assignment]
    environment: dict[str, object] = run.manifest["environment"]  # type: ignore[assignment]
    scores = [e for row in found.rows for e in row.entries if e and not is_timing(e.measure)]
    counts = sorted({entry.n for entry in scores if entry.n})
    images = f"images of '{spec['data']}'" if isinstance(spec["data"], str) else "images from files"
    what = f"{run.manifest['images']} {images}, protocol {spec['protocol']}, "
    if spec.get("timing_only"):
        what = f"First {images}, timed and not scored, "
    if spec.get("dtype", "float32") != "float32":
        what += f"scored in {spec['dtype']}, "
    if spec.get("backend", "torch") != "torch":
        what += f"scored by {spec['backend']}, "
    where = f"{environment['device']}, {environment['threads']} threads"
    notes = [f"{what}target {spec['target']}, seed {spec['seed']}, {where}"]
    if counts:
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes.append(
            f"Scores have no unit: mean ± half the bootstrap 95 % interval, n = {n}; best bold, second underlined"
        )
    if found.marked:
        notes.append(
            f"{ALIKE}: no significant difference from the best "
            "(Wilcoxon's signed-rank test on the same images, Holm over the methods, 5 %)"
        )
    notes += _failures(found) + _constant_maps(found)
    units = [
        UNITS[name].format(batch=spec["timing_batch"])
        for name in UNITS
        if name in {c.partition(" ")[0] for c in found.columns}
    ]
    return [*notes, "Costs: " + "; ".join(units)] if units else notes


def _failures(found: Content) -> list[str]:
    """How many values failed, of what and whose."""
    columns: dict[str, dict[str, tuple[int, int]]] = {head(measure): {} for measure in found.columns}
    for row in found.rows:
        for entry in filter(None, row.entries):
            counts = columns[head(entry.measure)]
            failed, tried = counts.get(row.method, (0, 0))
            counts[row.method] = failed + entry.failed, tried + entry.n + entry.failed
    said = failures(columns)
    marks = f"{FAILED}: some values failed and are left out; {NO_VALUE}{FAILED}: all failed"
    return [marks, f"Failed: {said}"] if said else []


def _constant_maps(found: Content) -> list[str]:
    """How many maps rank nothing, and whose."""
    counts: dict[str, tuple[int, int]] = {}
    for row in found.rows:
        constant, tried = counts.get(row.method, (0, 0))
        images = max((e.n + e.failed for e in row.entries if e and not is_timing(e.measure)), default=0)
        counts[row.method] = constant + row.constant, tried + images
    hit = sorted((name for name in counts if counts[name][0]), key=lambda name: -counts[name][0])
    said = some([f"{name} {counts[name][0]} of {counts[name][1]}" for name in hit])
    note = f"{CONSTANT}: some maps are constant (degenerate) and rank nothing; their values count: {said}"
    return [note] if hit else []
