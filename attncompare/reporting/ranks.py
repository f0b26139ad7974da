"""Critical-difference diagrams: who ranks where, and who cannot be told apart."""

from matplotlib.figure import Figure

from attncompare.benchmark.rankings import rank_methods, score_table
from attncompare.errors import ResultFormatError
from attncompare.reporting.gallery import Gallery


def ranks(run: Gallery, width: float) -> Figure:
    """Mean ranks of each model's methods under the run's first metric; a bar joins what Nemenyi's test cannot tell apart."""
    import scikit_posthocs

    names = run.metric_names()
    if not names:
        raise ResultFormatError(f"{run.folder} has no scores to rank; add metrics")
    found = {model: rank_methods(score_table(run.records, model, names[0])) for model in run.models}
    high = 0.75 + 0.13 * max(len(one.ranks) for one in found.values())
    figure = Figure(figsize=(width, high * len(found)), layout="constrained")
    for axes, (model, one) in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found.items(), strict=True):
        lost = f", {one.lost} lost to failures" if one.lost else ""
        axes.set_title(f"{model}: mean rank by {names[0]}, {one.images} images{lost}", fontsize=7)
        if one.p.isna().any(axis=None) or len(one.ranks) < 3:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "needs three methods and two images", ha="center", fontsize=6, transform=axes.transAxes)
            continue
        scikit_posthocs.critical_difference_diagram(
            one.ranks,
            one.p,
            cd=one.critical_difference,
            ax=axes,
            label_props={"fontsize": 6},
            marker_props={"s": 8},
            elbow_props={"linewidth": 0.5},
        )
    return figure
