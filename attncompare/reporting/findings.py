"""What a run shows, in sentences, so that the report's headings say it."""

import numpy as np
import pandas as pd

from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.content import number


def listed(names: list[str]) -> str:
    """Names as they stand in a sentence.

    >>> listed(["cam", "hires_cam", "saliency"])
    'cam, hires_cam and saliency'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def best_first(run: Gallery, model: str, measure: str) -> pd.DataFrame:
    """The summary rows of a measure on a model, best mean first."""
    rows = run.summary
    rows = rows[(rows.model == model) & (rows.measure == measure) & (rows.n > 0)]
    return rows.sort_values("mean", ascending=metrics.get(measure).better == "lower", kind="stable")


def printed(means: pd.Series, measure: str) -> pd.Series:
    """Means with the digits that tables print: two that look alike there are a tie in every heading."""
    return means.map(lambda value: float(number(value, measure)))


def pareto_front(table: pd.DataFrame, cost: str, quality: str) -> list[list[str]]:
    """The points that no method beats in one of cost and quality without losing in the other, cheapest first.

    A point holds the methods that tie in both: costs count with three digits, qualities as tables print them.

    >>> table = pd.DataFrame({"ms": [1.0, 2.0, 3.0, 3.0], "insertion": [0.5, 0.4, 0.6, 0.60001]}, index=list("abcd"))
    >>> pareto_front(table, "ms", "insertion")
    [['a'], ['c', 'd']]
    """
    sign = 1 if metrics.get(quality).better == "higher" else -1
    spent = table[cost].map(lambda value: float(f"{value:.3g}"))
    good = sign * printed(table[quality], quality)
    front: dict[float, list[str]] = {}
    best = -np.inf
    for name in spent.index[np.lexsort([-good, spent])]:
        if good[name] > best or (good[name] == best and spent[name] in front):
            front.setdefault(spent[name], []).append(str(name))
            best = good[name]
    return list(front.values())


def best_of(rows: pd.DataFrame, measure: str) -> list[str]:
    """The methods that share the first place among rows of `best_first`."""
    means = printed(rows["mean"], measure)
    return [str(name) for name in rows.method[means == means.iloc[0]]] if len(rows) else []


def leader(run: Gallery, model: str, measure: str, letters: dict[str, str]) -> str:
    """Who leads a model's ranking by a measure, how sure that is, and who cannot be told apart; "" without values."""
    rows = best_first(run, model, measure)
    if not len(rows):
        return ""
    first = best_of(rows, measure)
    own = {letter for name in first for letter in letters.get(name, "")}
    equal = [m for m in map(str, rows.method) if m not in first and set(letters.get(m, "")) & own]
    words = _numbers(rows[rows.method.isin(first)], measure)
    unsure = f"; not told apart from {few(equal)}" if equal else ""
    controls = [name for name in first if methods.get(name).control]
    if controls:
        rest = [name for name in first if name not in controls]
        met = f", which {few(rest)} only equal{'s' * (len(rest) == 1)}" if rest else ""
        return f"no method beats the control{'s' * (len(controls) > 1)} {listed(controls)}{met} ({words}){unsure}"
    weak = [m for m in equal if methods.get(m).control]
    return f"{few(first)} lead{'s' * (len(first) == 1)} ({words}){unsure}" + (", and so from a control" if weak else "")


def _numbers(first: pd.DataFrame, measure: str) -> str:
    """The mean that the first methods share, the interval or what holds all of them, and the number of images."""
    interval = f"{number(first.low.min(), measure)} to {number(first.high.max(), measure)}"
    held = f"95 % interval {interval}" if len(first) == 1 else f"95 % intervals within {interval}"
    low, high = first.n.min(), first.n.max()
    return (
        f"{measure} {number(first['mean'].iloc[0], measure)}, {held}, n = {low if low == high else f'{low} to {high}'}"
    )


def few(names: list[str], most: int = 4) -> str:
    """Names in a sentence that stays short."""
    return listed(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more methods"


def front(model: str, points: list[list[str]], cost: str, quality: str) -> str:
    """The Pareto front of a model, from its cheapest to its best point; methods of one point are a tie.

    >>> front("vit", [["cam"], ["grad_cam", "hires_cam"]], "latency", "insertion")
    'vit: the Pareto front of insertion against latency goes from cam to grad_cam = hires_cam'
    """
    if not points:
        return f"{model}: {quality} against {cost}"
    names = [" = ".join(point) for point in points]
    what = f"the Pareto front of {quality} against {cost}"
    if len(names) == 1:
        return f"{model}: {listed(points[0])} alone {'is' if len(points[0]) == 1 else 'are'} on {what}"
    over = f" over {listed(names[1:-1])}" if len(names) > 2 else ""
    return f"{model}: {what} goes from {names[0]}{over} to {names[-1]}"


def heat(run: Gallery, model: str) -> str:
    """Whether the metrics agree about the best methods that are no control."""
    winners: dict[str, list[str]] = {}
    for name in run.metric_names():
        rows = best_first(run, model, name)
        first = best_of(rows.loc[[not methods.get(str(m)).control for m in rows.method]], name)
        if first:
            winners.setdefault(few(sorted(first)), []).append(name)
    if not winners:
        return f"{model}: no values"
    if len(winners) == 1 and len(run.metric_names()) > 1:
        return f"{model}: all metrics put {next(iter(winners))} first"
    verbs = {who: "are" if " and " in who else "is" for who in winners}
    return f"{model}: " + "; ".join(f"{who} {verbs[who]} best by {listed(names)}" for who, names in winners.items())


def alike(table: pd.DataFrame, what: str) -> str:
    """The pair of a square matrix of correlations that agrees most, and the one that does least."""
    values = table.to_numpy(dtype=float, copy=True)
    values[np.tril_indices(len(values))] = np.nan
    if np.isnan(values).all():
        return f"too few {what} to compare"

    def pair(place: int) -> str:
        row, column = divmod(place, values.shape[1])
        return f"{table.index[row]} and {table.columns[column]} ({values[row, column]:.2f})"

    most, least = int(np.nanargmax(values)), int(np.nanargmin(values))
    if most == least:
        return f"{what} agree so far: {pair(most)}"
    return f"{pair(most)} agree most, {pair(least)} least"
