"""Nothing is clipped and nothing lies over anything else, at the widths of real venues."""

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from references.layout import drawn_texts, faults

from attncompare.reporting.figures import VENUES, draw, kinds

OTHERS = [pytest.param(venue, marks=pytest.mark.slow) for venue in ("neurips", "a4")]


@pytest.mark.parametrize("kind", kinds.names())
@pytest.mark.parametrize("venue", ["cvpr", *OTHERS])
def test_no_words_are_clipped_or_lie_over_others(synthetic, kind, venue):
    figure = draw(synthetic, kind, venue=venue)
    assert figure.get_figwidth() == VENUES[venue].width
    assert figure.get_figheight() <= 1.1 * VENUES[venue].height
    assert len(drawn_texts(figure)) > 5
    assert faults(figure) == []


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
