"""Critical-difference diagrams: who ranks where, and who cannot be told apart."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attncompare.benchmark.rankings import Ranking, rank_methods, score_table
from attncompare.errors import ResultFormatError
from attncompare.reporting.figures._base import Venue, figure_kind
from attncompare.reporting.figures._charts import arrow
from attncompare.reporting.figures._words import line_height, width_of, wrapped
from attncompare.reporting.gallery import Gallery

TOO_FEW = "needs three methods and two images"
LEVEL = 0.07  # inches from one bar to the next


@figure_kind
def critical_difference(run: Gallery, venue: Venue) -> Figure:
    """Mean ranks under the run's first metric; a bar joins methods that Nemenyi's test cannot tell apart (5 %).

    Drawn here and not by scikit-posthocs, whose labels cover each other in a narrow column.
    """
    names = run.metric_names()
    if not names:
        raise ResultFormatError(f"{run.folder} has no scores to rank; add metrics")
    found = {model: rank_methods(score_table(run.records, model, names[0])) for model in run.models}
    line = line_height(venue.small)
    heads, heights = [], []
    for model, one in found.items():
        lost = f", {one.lost} lost to failures" if one.lost else ""
        head = f"{model}: mean rank by {names[0]} {arrow(names[0])}, {one.images} images{lost}"
        heads.append(wrapped(head, venue.width - 0.1, venue.font))
        body = 2.6 * line + LEVEL * (len(cliques(one)) + 1) + line * -(-len(one.ranks) // 2)
        heights.append((line_height(venue.font) * (heads[-1].count("\n") + 1) + 0.1, body))
    total = sum(map(sum, heights))
    figure, top = Figure(figsize=(venue.width, total)), 0.0
    for one, text, (above, body) in zip(found.values(), heads, heights, strict=True):
        axes = figure.add_axes((0, 1 - (top + above + body) / total, 1, body / total))
        axes.set(xlim=(0, venue.width), ylim=(body, 0))
        axes.set_axis_off()
        axes.set_title(text, fontsize=venue.font, pad=4)
        if can_rank(one):
            _diagram(axes, one, venue)
        else:
            axes.text(0.5, 0.5, TOO_FEW, ha="center", fontsize=venue.small, transform=axes.transAxes)
        top += above + body
    return figure


def can_rank(one: Ranking) -> bool:
    """Whether there are enough methods and images for the test."""
    return len(one.ranks) >= 3 and not one.p.isna().any(axis=None)


def cliques(one: Ranking) -> list[tuple[float, float]]:
    """Lowest and highest mean rank of each largest group whose ends the test cannot tell apart, best group first."""
    if not can_rank(one):
        return []
    order, groups, reached = list(one.ranks.index), [], 0
    for start, name in enumerate(order):
        alike = [place for place in range(start, len(order)) if one.p.loc[name, order[place]] >= 0.05 or place == start]
        end = max(alike)
        if end > max(reached, start):
            groups.append((float(one.ranks.iloc[start]), float(one.ranks.iloc[end])))
        reached = max(reached, end)
    return groups


def _diagram(axes: Axes, one: Ranking, venue: Venue) -> None:
    names, count, line = list(one.ranks.index), len(one.ranks), line_height(venue.small)
    labels = [f"{name} ({one.ranks[name]:.1f})" for name in names]
    left = max(width_of(label, venue.small) for label in labels) + 0.12
    step = (venue.width - 2 * left) / (count - 1)
    ink: dict[str, Any] = {"color": "black", "linewidth": 0.6, "solid_capstyle": "butt"}
    words: dict[str, Any] = {"fontsize": venue.small}
    end = min(one.critical_difference, count - 1)
    axes.plot([left, left + step * end], [0.5 * line] * 2, **(ink | {"linewidth": 1.2}))
    distance = f"CD {one.critical_difference:.1f}"
    axes.text(left - 0.05, 0.5 * line, distance, ha="right", va="center", **words)
    across = 2.3 * line
    axes.plot([left, venue.width - left], [across] * 2, **ink)
    every = -(-count // max(2, int((venue.width - 2 * left) / 0.25)))
    for rank in range(1, count + 1, every):
        x = left + step * (rank - 1)
        axes.plot([x, x], [across - 0.04, across], **ink)
        axes.text(x, across - 0.05, str(rank), ha="center", va="bottom", **words)
    groups = cliques(one)
    for level, (low, high) in enumerate(groups, start=1):
        ends = [left + step * (low - 1) - 0.03, left + step * (high - 1) + 0.03]
        axes.plot(ends, [across + LEVEL * level] * 2, **(ink | {"linewidth": 2.2}))
    below = across + LEVEL * (len(groups) + 1)
    half = -(-count // 2)
    for place, (name, label) in enumerate(zip(names, labels, strict=True)):
        x, first = left + step * (one.ranks[name] - 1), place < half
        y = below + line * ((place if first else count - 1 - place) + 0.4)
        edge = left - 0.04 if first else venue.width - left + 0.04
        axes.plot([x, x, edge], [across, y, y], **ink)
        axes.text(edge + (-0.03 if first else 0.03), y, label, ha="right" if first else "left", va="center", **words)
