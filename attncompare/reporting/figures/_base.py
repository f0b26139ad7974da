"""What a figure is: a kind with a name, drawn from a run for a venue."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

from attncompare.errors import SpecError, unknown_name
from attncompare.metrics._base import metrics
from attncompare.registry import Registry, summary_of
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.counts import some
from attncompare.storage.folder import Location

Draw = Callable[[Gallery, "Venue"], Figure]
SMALLEST = 5.0  # points; what a journal still prints


@dataclass(frozen=True)
class Venue:
    """Where a figure is printed. width, height: inches of a column (or the page) of text; font: points."""

    width: float
    height: float
    font: float

    @property
    def small(self) -> float:
        """Points of tick labels, legends and the names of methods."""
        return max(SMALLEST, self.font - 1.5)


VENUES = {
    "cvpr": Venue(3.25, 8.875, 7),
    "cvpr-wide": Venue(6.875, 8.875, 8),
    "icml": Venue(3.25, 9.0, 7),
    "icml-wide": Venue(6.75, 9.0, 8),
    "ieee": Venue(3.5, 9.0, 7),
    "ieee-wide": Venue(7.16, 9.0, 8),
    "neurips": Venue(5.5, 9.0, 8),
    "iclr": Venue(5.5, 9.0, 8),
    "a4": Venue(7.0, 9.7, 8),
}
"""Text columns of the venues' style files; "wide" is a figure across both columns."""


def venue_of(name: str) -> Venue:
    """A venue by its name; UnknownNameError for another."""
    if name not in VENUES:
        raise unknown_name("venue", name, VENUES)
    return VENUES[name]


@dataclass(frozen=True)
class Kind:
    """A kind of figure."""

    name: str
    draw: Draw

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return summary_of(self.draw)


kinds: Registry[Kind] = Registry("figure", "attncompare.reporting.figures")


def figure_kind(function: Draw) -> Draw:
    """Register a function as a kind of figure under its name, with dashes."""
    name = function.__name__.replace("_", "-")
    kinds.add(name, Kind(name, function))
    return function


def style(venue: Venue) -> dict[str, Any]:
    """What matplotlib is set to while drawing and writing; text is never read as mathematics."""
    small = dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), venue.small)
    return {
        "pdf.fonttype": 42,  # TrueType, embedded: submission systems refuse Type 3
        "svg.fonttype": "path",  # an SVG cannot embed a font that every viewer honors
        "svg.hashsalt": "attncompare",
        "text.parse_math": False,
        "text.hinting": "none",  # words are as wide in a PNG as in a PDF
        "font.size": venue.font,
        "axes.titlesize": venue.font,
        "axes.labelsize": venue.font,
        "axes.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.width": 0.5,
        "ytick.major.width": 0.5,
        "xtick.major.size": 2,
        "ytick.major.size": 2,
        "xtick.minor.size": 1,
        "xtick.minor.width": 0.4,
        "lines.linewidth": 1.0,
        "hatch.linewidth": 0.4,
        **small,
    }


def styled(venue: Venue) -> AbstractContextManager[None]:
    """Matplotlib's defaults and the venue's style, whatever the user's own settings are."""
    found: AbstractContextManager[None] = matplotlib.style.context(["default", style(venue)])
    return found


def draw(
    folder: Location,
    kind: str,
    *,
    venue: str = "a4",
    models: Sequence[str] = (),
    methods: Sequence[str] = (),
    images: Sequence[str] = (),
    measures: Sequence[str] = (),
) -> Figure:
    """A matplotlib figure of a run, as wide as a venue's column and as tall as what it shows (see `beyond_page`).

    kind: see `attncompare list figures`. models, methods, measures: only these; images: only these pictures (scores are
    always of all images). Raises UnknownNameError for a name that the run does not have, ResultFormatError when the run
    lacks what the figure shows.
    """
    chosen, page = kinds.get(kind), venue_of(venue)
    run = only(Gallery.open(folder), models=models, methods=methods, images=images, measures=measures)
    with styled(page):
        return chosen.draw(run, page)


def beyond_page(figure: Figure, venue: str) -> str:
    """What to tell the reader of a figure that is taller than the venue's page; nothing if it fits.

    >>> beyond_page(Figure(figsize=(3.25, 12)), "cvpr")
    'the figure is 12.0 in tall and a page of cvpr 8.9 in: choose fewer models or methods, or a wider venue'
    """
    tall, page = figure.get_figheight(), venue_of(venue).height
    if tall <= page:
        return ""
    advice = "choose fewer models or methods, or a wider venue"
    return f"the figure is {tall:.1f} in tall and a page of {venue} {page:.1f} in: {advice}"


def without_glyph(figure: Figure) -> str:
    """The characters of a figure's words that its font cannot draw: each becomes an empty box.

    >>> figure = Figure()
    >>> _ = figure.text(0.5, 0.5, "漢 und ż")
    >>> without_glyph(figure)
    '漢'
    """
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    words = "".join(text.get_text() for text in figure.findobj(Text))
    return "".join(sorted({character for character in words if ord(character) not in known and character != "\n"}))


def without_values(
    folder: Location, *, models: Sequence[str] = (), methods: Sequence[str] = (), measures: Sequence[str] = ()
) -> str:
    """What to tell the reader of a figure about what failed on every image, which it cannot show; nothing if it is none.

    models, methods, measures: those of the figure, all where none is named.
    """
    run = only(Gallery.open(folder), models=models, methods=methods, measures=measures)
    lost: list[str] = []
    for (model, method), rows in run.computed.groupby(["model", "method"], sort=False):
        failed = list(rows.measure[rows.n == 0])
        if failed:
            lost.append(f"{some(failed)} of " * (len(failed) < len(rows)) + f"{method} on {model}")
    return f"not shown, since every value failed: {some(lost)}; attncompare table counts them" if lost else ""


def only(
    run: Gallery,
    *,
    models: Sequence[str] = (),
    methods: Sequence[str] = (),
    images: Sequence[str] = (),
    measures: Sequence[str] = (),
) -> Gallery:
    """A part of a run, for one look at it; nothing named is everything."""
    records = run.records
    for column, wanted in (("model", models), ("method", methods), ("measure", measures)):
        known = set(records[column])
        for name in wanted:
            if name not in known:
                raise unknown_name(f"{column} of this run", name, known)
        if wanted:
            kept = records[column].isin(list(wanted))
            if column == "measure":
                kept |= ~records[column].isin(metrics.names())  # costs stay
            records = records[kept]
    for name in images:
        if name not in run.images:
            raise unknown_name("image with saved maps", name, run.images)
    maps = {
        (model, method): [_with_images(saved, images) for saved in parts]
        for (model, method), parts in run.maps.items()
        if (not models or model in models) and (not methods or method in methods)
    }
    return Gallery(run.folder, records, run.manifest, maps)


def _with_images(saved: Any, images: Sequence[str]) -> Any:
    return saved if not images else replace(saved, maps={n: m for n, m in saved.maps.items() if n in images})


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write PDF, SVG or PNG (300 dots per inch); the same figure gives the same bytes.

    Raises SpecError for another ending.
    """
    path = Path(path)
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": None}
    if path.suffix not in metadata:
        raise SpecError(f"figure file {path}: the ending must be .pdf, .svg or .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    width = figure.get_figwidth()
    venue = min(VENUES.values(), key=lambda one: abs(one.width - width))
    with styled(venue):
        figure.savefig(path, dpi=300, metadata=metadata[path.suffix])
    return path
