"""Maps in memory, drawn over their images: for a notebook."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.maps import AttributionMap
from attncompare.reporting.figures._base import styled, venue_of
from attncompare.reporting.figures._panels import Block, Cell, draw_blocks
from attncompare.reporting.overlay import overlay, pixels_of


def show_maps(
    images: Tensor, maps: Mapping[str, AttributionMap], *, labels: Sequence[str] = (), venue: str = "a4"
) -> Figure:
    """A figure of images x maps, as `explain_together` returns them; figures of whole runs are in `attncompare.figures`.

    images: (B,3,H,W) in [0, 1]. maps: head of a column -> (B,h,w) maps of these images. labels: one for each row.
    venue: sets width and font size. Raises SpecError where numbers of images differ or a map lies over channels.

    >>> import torch
    >>> import attncompare as ac
    >>> images = torch.rand(2, 3, 64, 64)
    >>> figure = show_maps(images, ac.explain_together(ac.load_model("demo/cnn"), ["cam", "saliency"], images))
    >>> len(figure.axes)  # 2 images x (image, cam, saliency)
    6
    """
    page = venue_of(venue)
    for name, found in maps.items():
        if not found.spatial or len(found.values) != len(images):
            shape = tuple(found.values.shape)
            raise SpecError(
                f"{name} has maps of shape {shape}; ({len(images)}, h, w) is needed for {len(images)} images"
            )
    rows = [
        [Cell(picture), *(Cell(overlay(picture, np.asarray(one.values[row].cpu()))) for one in maps.values())]
        for row, picture in enumerate(pixels_of(images))
    ]
    with styled(page):
        return draw_blocks(page, [Block("", ["image", *maps], rows, labels)])
