"""Every kind looks as it did when its picture in baseline/ was drawn and looked at; see make_baselines.py for new ones."""

import numpy as np
import pytest
from make_baselines import BASELINE, VENUE, baseline, shrunk
from scipy.ndimage import gaussian_filter

from attncompare.reporting.figures import COLORS, _base, draw, kinds

BLUR = 2  # pixels, 0.04 in: strokes of letters may move by less
TOLERANCE = 0.07
"""Largest difference of any channel in [0, 1] after the blur. Builds of matplotlib and freetype rasterize letters
differently: hinting as fonts ask for it changes these pictures by up to 0.06, the smallest change below by 0.078."""


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The difference in the place where two pictures differ most; infinite for other sizes."""
    if one.shape != other.shape:
        return np.inf
    first, second = (gaussian_filter(picture / 255, (BLUR, BLUR, 0)) for picture in (one, other))
    return float(abs(first - second).max())


@pytest.mark.parametrize("kind", kinds.names())
def test_a_figure_looks_as_it_did(synthetic, tmp_path, kind):
    assert apart(np.asarray(shrunk(draw(synthetic, kind, venue=VENUE), tmp_path)), baseline(kind)) <= TOLERANCE


def test_no_picture_is_left_of_a_kind_that_is_gone():
    assert sorted(path.stem for path in BASELINE.iterdir()) == kinds.names()


def test_letters_may_be_rasterized_otherwise(synthetic, tmp_path, monkeypatch):
    style = _base.style
    monkeypatch.setattr(_base, "style", lambda venue: style(venue) | {"text.hinting": "native"})
    assert 0 < apart(np.asarray(shrunk(draw(synthetic, "bars", venue=VENUE), tmp_path)), baseline("bars")) <= TOLERANCE


def swap_two_maps(figure):
    one, other = (figure.axes[place].images[0] for place in (1, 3))
    data = one.get_array()
    one.set_data(other.get_array())
    other.set_data(data)


def shift_a_map(figure):
    figure.axes[1].images[0].set_data(np.roll(figure.axes[1].images[0].get_array(), 12, axis=1))


def move_the_legend(figure):
    figure.legends[0].set_loc("outside lower left")


def swap_two_colors(figure):
    for line in (line for axes in figure.axes for line in axes.lines if line.get_marker() != "None"):
        swap = {COLORS[0]: COLORS[1], COLORS[1]: COLORS[0]}
        line.set_color(swap.get(line.get_color(), line.get_color()))


def swap_two_curves(figure):
    lines = figure.axes[0].lines
    first, last = lines[0].get_ydata(), lines[-1].get_ydata()
    lines[0].set_ydata(last)
    lines[-1].set_ydata(first)


def shorten_a_bar(figure):
    figure.axes[0].patches[-1].set_width(0.8 * figure.axes[0].patches[-1].get_width())


def change_a_cell(figure):
    image = figure.axes[0].images[0]
    values = image.get_array().copy()
    values[1, 3] = 0
    image.set_data(values)


def lose_a_bar_of_equals(figure):
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() > 2]
    thick[0].remove()


CHANGES = [
    ("grid", swap_two_maps), ("layers", shift_a_map), ("curves", move_the_legend), ("curves", swap_two_curves),
    ("cost", swap_two_colors), ("bars", shorten_a_bar), ("agreement", change_a_cell),
    ("critical-difference", lose_a_bar_of_equals),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_a_change_that_a_reader_would_see_fails(synthetic, tmp_path, kind, change):
    figure = draw(synthetic, kind, venue=VENUE)
    change(figure)
    assert apart(np.asarray(shrunk(figure, tmp_path)), baseline(kind)) > TOLERANCE
