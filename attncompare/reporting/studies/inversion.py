"""What layers keep of an image: the inversions beside the image, and how their losses fell."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from attncompare.reporting.figures._base import Venue, styled, venue_of
from attncompare.reporting.figures._looks import DASHES
from attncompare.reporting.figures._words import line_height, wrapped
from attncompare.studies.inversion import Inversion

NARROWEST = 0.85  # inches of a picture
PLOT = 1.9  # inches of the loss curves' height


def inversion_figure(study: Inversion, venue: str = "a4") -> Figure:
    """The image, its inversions layer by layer with their relative losses, and the loss curves.

    The loss in brackets is that of an image of nothing but the mean color.

    >>> import torch
    >>> import attncompare as ac
    >>> found = ac.studies.invert(ac.load_model("demo/cnn"), torch.rand(1, 3, 64, 64), ["0", "2"], steps=2)
    >>> len(inversion_figure(found).axes)  # the image, two inversions, the curves
    4
    """
    page = venue_of(venue)
    count = len(study.layers) + 1
    columns = math.ceil(count / math.ceil(count / int(page.width / NARROWEST)))
    with styled(page):
        side = page.width / columns
        lines = max(_title(study, number, side, page).count("\n") + 1 for number in range(len(study.layers)))
        row = side * study.image.shape[1] / study.image.shape[2] + lines * line_height(page.small) + 0.1
        heights = [math.ceil(count / columns) * row, PLOT]
        figure = Figure(figsize=(page.width, sum(heights)), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        _pictures(above, study, (columns, side), page)
        _curves(below.subplots(), study, page)
    return figure


def _title(study: Inversion, number: int, side: float, page: Venue) -> str:
    losses = f"loss {study.final[number]:.2g}\n(mean color {study.mean_color[number]:.2g})"
    return "\n".join(wrapped(line, side - 0.1, page.small) for line in (study.layers[number], *losses.split("\n")))


def _pictures(part: SubFigure, study: Inversion, across: tuple[int, float], page: Venue) -> None:
    columns, side = across
    shown = [study.image, *study.images]
    titles = ["image", *(_title(study, number, side, page) for number in range(len(study.layers)))]
    panels = part.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, picture, words in zip(panels, shown, titles, strict=False):
        axes.imshow(
            picture.permute(1, 2, 0).numpy(), interpolation="nearest" if len(picture[0]) < 100 else "antialiased"
        )
        axes.set_title(words, fontsize=page.small, pad=2, linespacing=1.1)


def _curves(axes: Axes, study: Inversion, page: Venue) -> None:
    """Relative loss against step on a logarithmic scale."""
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(study.layers)))
    for number, path in enumerate(study.layers):
        dashes = DASHES[number % len(DASHES)]
        axes.plot(study.losses[number], color=colors[number], linestyle=dashes, label=path)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlim(0, study.losses.shape[1] - 1)
    axes.set_xlabel("step")
    axes.set_ylabel("relative feature loss")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title=study.model, title_fontsize=page.small
    )
