"""The images of a concept study: read from whatever they are given as, and dealt into sets of equal size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.arguments import check_images
from attncompare.data.datasets import open_dataset
from attncompare.data.images import Picture, load_images
from attncompare.errors import SpecError

SETS = 10  # of random images: the spread of their scores is known with one degree of freedom less
FEWEST = 6  # images in a set: two are held out then

Pictures = Tensor | str | Path | Sequence[Picture]
"""Images (n,3,H,W) in [0, 1], a folder, or a list of files or of (H,W,3) uint8 arrays."""


def read(model: ModelAdapter, pictures: Pictures) -> Tensor:
    """Images (n,3,H,W) in [0, 1], of whatever form they were given in; ImageError for a file that cannot be read."""
    if isinstance(pictures, Tensor):
        return check_images(model, pictures)
    if isinstance(pictures, str | Path):
        folder = open_dataset(str(pictures))
        return load_images([folder.load(name).image for name in folder.names], model)
    return load_images(list(pictures), model)


def deal(
    model: ModelAdapter, concepts: Mapping[str, Pictures], random: Pictures | Sequence[Pictures], seed: int
) -> tuple[tuple[str, ...], list[Tensor]]:
    """The concepts' names, and the sets, first those of the concepts: all cut at random to the size of the smallest.

    random: a list of sets, or one pool that is dealt into ten. A classifier's normal is the noisier the fewer images it is
    fitted to, so that only sets of equal size can be compared. Raises SpecError for fewer than ten random sets.
    """
    names = tuple(concepts)
    if not names:
        raise SpecError("no concept was given; give a name and a folder of images")
    draw = torch.Generator().manual_seed(seed)
    others = _random_sets(model, random, draw)
    if len(others) < SETS:
        raise SpecError(f"{len(others)} random sets; at least {SETS} are needed to know how far chance reaches")
    sets = [*(read(model, one) for one in concepts.values()), *others]
    size = min(len(one) for one in sets)
    if size < FEWEST:
        place = [len(one) for one in sets].index(size)
        which = f"concept {names[place]!r}" if place < len(names) else f"random set {place - len(names)}"
        raise SpecError(f"{which} has {size} images; at least {FEWEST} are needed in every set")
    return names, [_some(one, size, draw) for one in sets]


def _some(images: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """So many of the images, chosen at random."""
    return images[torch.randperm(len(images), generator=draw)[:count].to(images.device)]


def _random_sets(model: ModelAdapter, random: Pictures | Sequence[Pictures], draw: torch.Generator) -> list[Tensor]:
    """The sets that were given, or one pool in ten parts."""
    if isinstance(random, list | tuple) and not all(_is_picture(one) for one in random):
        return [read(model, cast(Pictures, one)) for one in random]
    pool = read(model, cast(Pictures, random))
    size = len(pool) // SETS
    if size < FEWEST:
        raise SpecError(f"{len(pool)} random images; {SETS} sets of at least {FEWEST} are needed")
    return list(torch.split(_some(pool, SETS * size, draw), size))


def _is_picture(one: object) -> bool:
    """Whether an item of a list is one image rather than a set of them."""
    return isinstance(one, np.ndarray) or (isinstance(one, str | Path) and not Path(one).is_dir())
