"""Nothing is clipped and nothing lies over anything else, at the widths of real venues."""

from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from references.layout import drawn_texts, faults

from attncompare.reporting.figures import VENUES, draw, kinds
from attncompare.reporting.figures._base import styled
from attncompare.reporting.gallery import Gallery

OTHERS = [pytest.param(venue, marks=pytest.mark.slow) for venue in ("neurips", "a4")]


@pytest.mark.parametrize("kind", kinds.names())
@pytest.mark.parametrize("venue", ["cvpr", *OTHERS])
def test_no_words_are_clipped_or_lie_over_others(synthetic, kind, venue):
    figure = draw(synthetic, kind, venue=venue)
    assert figure.get_figwidth() == VENUES[venue].width
    assert figure.get_figheight() <= 1.1 * VENUES[venue].height
    assert len(drawn_texts(figure)) > 5
    assert faults(figure) == []


def several(run: Gallery, count: int) -> Gallery:
    """The same run, as if it were of so many models of long names."""
    (first, *_), names = run.models, [f"timm/vit_small_patch{i}_224.augreg_in21k_ft_in1k" for i in range(count)]
    records = run.records[run.records.model == first]
    together = pd.concat([records.assign(model=name) for name in names], ignore_index=True)
    return replace(run, records=together, manifest=run.manifest | {"spec": run.manifest["spec"] | {"models": names}})


@pytest.mark.parametrize(("venue", "count"), [("neurips", 4), ("neurips", 6), ("a4", 6), ("cvpr", 6)])
def test_quality_against_cost_has_room_for_several_models(synthetic, venue, count):
    with styled(VENUES[venue]):
        figure = kinds.get("cost").draw(several(Gallery.open(synthetic), count), VENUES[venue])
    assert len(figure.axes) == 2 * count and faults(figure) == []


@pytest.mark.parametrize("kind", kinds.names())
def test_all_words_can_be_read(synthetic, kind):
    figure = draw(synthetic, kind, venue="cvpr")
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 5


def test_the_check_sees_words_over_words_and_words_that_leave_the_page():
    figure = Figure(figsize=(3, 1))
    figure.text(0.1, 0.5, "first")
    assert faults(figure) == []
    figure.text(0.12, 0.55, "second")
    figure.text(0.9, 0.1, "far too long for here")
    assert ["lies over" in fault or "leaves the page" in fault for fault in faults(figure)] == [True, True]
