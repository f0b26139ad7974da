"""The images of a concept study: read from whatever they are given as, and dealt into sets of equal size."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from attncompare.data.datasets import open_dataset
from attncompare.data.images import Picture
from attncompare.errors import SpecError
from attncompare.models.adapter import ModelAdapter
from attncompare.studies.pictures import pictures_of

SETS = 10  # of random images: the spread of their scores is known with one degree of freedom less
FEWEST = 6  # images in a set: two are held out then

Pictures = Tensor | str | Path | Sequence[Picture]
"""Images (n,3,H,W) in [0, 1], a folder, or a list of files or of (H,W,3) uint8 arrays."""


def read(model: ModelAdapter, pictures: Pictures) -> Tensor:
    """Images (n,3,H,W) in [0, 1], of whatever form they were given in; ImageError for a file that cannot be read."""
    if isinstance(pictures, str | Path):
        folder = open_dataset(str(pictures))
        pictures = [folder.load(name).image for name in folder.names]
    return pictures_of(model, pictures).images


def deal(
    model: ModelAdapter, concepts: Mapping[str, Pictures], random: Pictures | Sequence[Pictures], seed: int
) -> tuple[tuple[str, ...], list[Tensor]]:
    """The concepts' names, and the sets, first those of the concepts: all cut at random to the size of the smallest.

    random: a list of sets, or one pool that is dealt into ten. A classifier's normal is the noisier the fewer images it is
    fitted to, so that only sets of equal size can be compared. Raises SpecError for fewer than ten random sets, and where
    random sets share images with each other or with a concept.
    """
    if not isinstance(concepts, Mapping):
        raise SpecError(
            f"concepts are a {type(concepts).__name__}; give each a name, such as {{'striped': 'striped/'}} with a folder"
        )
    names = tuple(concepts)
    if not names:
        raise SpecError("no concept was given; give a name and a folder of images")
    draw = torch.Generator().manual_seed(seed)
    others = _random_sets(model, random, draw)
    if len(others) < SETS:
        raise SpecError(f"{len(others)} random sets; at least {SETS} are needed to know how far chance reaches")
    sets = [*(read(model, one) for one in concepts.values()), *others]
    called = [*(f"concept {name!r}" for name in names), *(f"random set {place}" for place in range(len(others)))]
    size = min(len(one) for one in sets)
    if size < FEWEST:
        which = called[[len(one) for one in sets].index(size)]
        raise SpecError(f"{which} has {size} images; at least {FEWEST} are needed in every set")
    _refuse_repeats(called, sets, len(names))
    return names, [_some(one, size, draw) for one in sets]


def _refuse_repeats(called: Sequence[str], sets: Sequence[Tensor], concepts: int) -> None:
    """SpecError for an image that two sets share, or that one set holds twice; `concepts` sets come first.

    Random sets with images in common are no independent draws: copies of one set have no spread, and any concept lies
    outside it. Two concepts may share images, since each is tested by itself.
    """
    seen: dict[bytes, int] = {}
    for place in reversed(range(len(sets))):  # random sets first, so that a concept's image is held against them
        digests = [sha256(image.numpy().tobytes()).digest() for image in sets[place].cpu()]
        if len(set(digests)) < len(digests):
            raise SpecError(f"{called[place]} holds an image twice; give every image once")
        other = next((seen[one] for one in digests if one in seen), None)
        if other is not None:
            raise SpecError(f"{called[place]} and {called[other]} share an image; give random sets none of another set")
        if place >= concepts:
            seen |= dict.fromkeys(digests, place)


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
