"""The maps of a model's first choices beside each other."""

from matplotlib.figure import Figure

from attncompare.reporting.figures._base import styled, venue_of
from attncompare.reporting.figures._panels import Block, Cell, draw_blocks
from attncompare.reporting.figures.grid import even_parts
from attncompare.reporting.overlay import overlay, pixels_of
from attncompare.studies.first_choices import TopClasses

NARROWEST = 1.1  # inches of a panel under the name of a class


def top_classes_figure(found: TopClasses, image: int = 0, venue: str = "a4") -> Figure:
    """The image, and the map of each of the most probable classes with its name and probability, the first first.

    image: which of the study's images.

    >>> import attncompare as ac
    >>> found = ac.studies.top_classes(ac.load_model("demo/cnn"), ac.open_dataset("shapes", limit=1), k=3)
    >>> len(top_classes_figure(found).axes)
    4
    """
    page, name = venue_of(venue), found.pictures.names[image]
    picture, label = pixels_of(found.pictures.images[image : image + 1])[0], found.pictures.labels[image]
    panels = {"image": Cell(picture)}
    for rank, class_name in enumerate(found.names[image]):
        head = f"{rank + 1}. {class_name} ({found.probability[image, rank]:.3f})"
        panels[head] = Cell(overlay(picture, found.maps[image, rank]))
    title = f"{found.method}, {found.model} on {name}" + (f" · true: {label}" if label else "")
    bands = even_parts(list(panels), max(2, int(page.width / NARROWEST)))
    blocks = [Block(title if band is bands[0] else "", band, [[panels[head] for head in band]]) for band in bands]
    note = "In brackets: the probability of the class. Every map has its own color scale."
    with styled(page):
        return draw_blocks(page, blocks, note)
