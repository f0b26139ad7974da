"""What a run shows, in sentences, so that the report's headings say it."""

import numpy as np
import pandas as pd

from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery


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


def leader(run: Gallery, model: str, measure: str, letters: dict[str, str]) -> str:
    """Who leads a model's ranking by a measure, how sure that is, and who cannot be told apart; "" without values."""
    rows = best_first(run, model, measure)
    if not len(rows):
        return ""
    best = rows.iloc[0]
    name, own = str(best.method), letters.get(str(best.method), "")
    words = f"{measure} {best['mean']:.3f}, 95 % interval {best.low:.3f} to {best.high:.3f}, n = {best.n}"
    equal = [m for m in map(str, rows.method) if m != name and set(letters.get(m, "")) & set(own)]
    unsure = f"; not told apart from {_few(equal)}" if equal else ""
    if methods.get(name).control:
        return f"no method beats the control {name} ({words}){unsure}"
    weak = [m for m in equal if methods.get(m).control]
    return f"{name} leads ({words}){unsure}" + (", and so from a control" if weak else "")


def _few(names: list[str], most: int = 4) -> str:
    return listed(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more methods"


def front(model: str, names: list[str]) -> str:
    """The Pareto front of a model."""
    if not names:
        return model
    lone = f"{names[0]} alone is on the Pareto front"
    return f"{model}: " + (
        lone if len(names) == 1 else f"the Pareto front goes from {names[0]} over {listed(names[1:])}"
    )


def heat(run: Gallery, model: str) -> str:
    """Whether the metrics agree about the best method that is no control."""
    winners: dict[str, list[str]] = {}
    for name in run.metric_names():
        real = [str(m) for m in best_first(run, model, name).method if not methods.get(str(m)).control]
        if real:
            winners.setdefault(real[0], []).append(name)
    if not winners:
        return f"{model}: no values"
    if len(winners) == 1 and len(run.metric_names()) > 1:
        return f"{model}: all metrics put {next(iter(winners))} first"
    return f"{model}: " + "; ".join(f"{method} is best by {listed(names)}" for method, names in winners.items())


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
