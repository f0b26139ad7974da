"""Layers of one model on one image: its strongest channels in every layer."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attncompare.reporting.figures._base import styled, venue_of
from attncompare.reporting.figures._panels import Block, Cell, draw_blocks
from attncompare.reporting.figures.grid import even_parts
from attncompare.reporting.overlay import overlay, pixels_of
from attncompare.studies.layer_responses import LayerResponse, LayerStudy

NARROWEST, FEWEST = 0.75, 3  # inches of a panel, channels in a row: further channels go on in further rows


def layers_figure(study: LayerStudy, image: int = 0, venue: str = "a4") -> Figure:
    """A row per layer, shallow to deep: the image, the channel mean and the strongest channels, each with its mean.

    image: which of the study's images.

    >>> import attncompare as ac
    >>> study = ac.studies.layers(ac.load_model("demo/cnn"), ac.open_dataset("shapes", limit=1), ["0", "2"])
    >>> len(layers_figure(study).axes)  # 2 layers x (image, channel mean, 3 channels)
    10
    """
    page = venue_of(venue)
    picture = pixels_of(study.pictures.images[image : image + 1])[0]
    room = max(FEWEST, int(page.width / NARROWEST) - 2)
    rows, labels = list[list[Cell]](), list[str]()
    for one in study.layers:
        first = [Cell(picture), Cell(overlay(picture, one.mean[image]), f"mean {one.mean[image].mean():.3g}")]
        for part in even_parts(_channels(one, picture, image), room):
            rows.append([*first, *part])
            first = [Cell(None), Cell(None)]
            labels.append(f"{one.layer} ({one.grid[0]}x{one.grid[1]})")
    heads = ["image", "channel mean", *["channel"] * (max(map(len, rows)) - 2)]
    note = (
        "Every panel has its own color scale, from its smallest to its largest value; numbers are means over the map. "
        "Channels stand in the order of their means, the largest first."
    )
    if any(one.mean.min() < 0 or one.strongest.min() < 0 for one in study.layers):
        note += " Red and blue: above and below 0."
    with styled(page):
        return draw_blocks(page, [Block(_title(study, image), heads, rows, labels)], note)


def _title(study: LayerStudy, image: int) -> str:
    """Who looks at what, the true class where it is known, and the predicted one."""
    label, predicted = study.pictures.labels[image], study.predicted[image]
    words = [f"{study.model} on {study.pictures.names[image]}"]
    words += [f"true: {label}"] if label else []
    words += [f"predicted: {predicted} ({study.probability[image]:.2f})"] if predicted else []
    return " · ".join(words)


def _channels(one: LayerResponse, picture: NDArray[np.uint8], image: int) -> list[Cell]:
    """The strongest channels of a layer over the image."""
    named = zip(one.index[image], one.strongest[image], strict=True)
    return [Cell(overlay(picture, values), f"channel {index}\nmean {values.mean():.3g}") for index, values in named]
