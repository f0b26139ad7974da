"""What a benchmark runs on: the synthetic shapes, real photos that come with packages, or a folder."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attncompare.data.images import read_image
from attncompare.data.shapes import CLASS_NAMES, render_shape
from attncompare.errors import SpecError, one_line

READ = ".png .apng .jpg .jpeg .jpe .jfif .bmp .gif .tif .tiff .webp .avif .jp2 .ppm .pgm .pbm"
SUFFIXES = frozenset((READ + " .heic .heif .jxl .tga .ico .psd .eps").split())
"""Endings of the images in a folder; those of formats that are not read become failed records, not a gap."""
MOST_SHAPES = 1_000_000
PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "astronaut.png", "camera.png")
"""scikit-image's bundled photos that show an object; read by path, so that nothing is fetched."""


@dataclass(frozen=True)
class Sample:
    """One image before any model's preprocessing. mask: (H,W) bool, the object that decides the class, if known."""

    name: str
    image: NDArray[np.uint8]
    label: int | None = None
    mask: NDArray[np.bool_] | None = None

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the pixels and their shape."""
        return _sha256(self.image)

    @cached_property
    def mask_hash(self) -> str | None:
        """The same of the mask; None where there is none."""
        return None if self.mask is None else _sha256(self.mask)


def _sha256(pixels: NDArray[np.generic]) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Names of samples and how to load one; loading raises ImageError for a file that cannot be read."""

    name: str
    names: tuple[str, ...]
    load: Callable[[str], Sample]
    class_names: tuple[str, ...] | None = None


def _shapes(limit: int | None, split: str) -> Dataset:
    if limit is not None and limit > MOST_SHAPES:
        raise SpecError(f"limit {limit}: there are {MOST_SHAPES} shapes")

    def load(name: str) -> Sample:
        drawn = render_shape(int(name.rpartition("-")[2]), split)
        return Sample(name, drawn.image, drawn.label, drawn.mask)

    return Dataset("shapes", tuple(f"shapes-{split}-{i:05d}" for i in range(limit or 1000)), load, CLASS_NAMES)


def _files(name: str, paths: list[Path], limit: int | None) -> Dataset:
    """A data set of files, named as shortly as tells them apart, in characters that can be printed."""
    by_name: dict[str, Path] = {}
    for path in paths[:limit]:
        full = (path.name, f"{path.parent.name}/{path.name}", str(path.absolute()))
        names = [one_line(one) for one in full]
        by_name[next((short for short in names if short not in by_name), names[-1])] = path
    return Dataset(name, tuple(by_name), lambda file: Sample(file, read_image(by_name[file])))


def _listed(paths: list[Path], limit: int | None) -> Dataset:
    """Files in the order given; one that is missing or given twice is SpecError."""
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        raise SpecError(f"no such image file: {', '.join(missing) or '(none given)'}")
    full = [os.path.abspath(path) for path in paths]
    twice = sorted({one for one in full if full.count(one) > 1})
    if twice:
        raise SpecError(f"image file {twice[0]} is listed twice; every image counts once")
    return _files("files", paths, limit)


def _photos(limit: int | None) -> Dataset:
    spec = find_spec("skimage")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) / "data" if spec else Path()
    paths = [folder / name for name in PHOTOS if (folder / name).exists()]
    spec = find_spec("ai_benchmark")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        more = (Path(location) / "data" / "classification").glob("*.jpg")
        paths += sorted(more, key=lambda path: int(path.stem))
    if not paths:
        raise SpecError("data 'photos': scikit-image's bundled photos were not found; reinstall scikit-image")
    return _files("photos", paths, limit)


def open_dataset(name: str | tuple[str, ...], limit: int | None = None) -> Dataset:
    """Open "shapes" (test split), "shapes-val", "photos", a folder of images, or some image files.

    Raises SpecError when there is nothing of that name or the folder holds no image.

    >>> shapes = open_dataset("shapes", limit=2)
    >>> [shapes.load(name).image.shape for name in shapes.names]
    [(64, 64, 3), (64, 64, 3)]
    """
    if limit is not None and limit < 1:
        raise SpecError(f"limit must be at least 1, not {limit}")
    if not isinstance(name, str):
        return _listed([Path(os.path.expanduser(file)) for file in name], limit)
    if name in ("shapes", "shapes-val"):
        return _shapes(limit, "val" if name.endswith("val") else "test")
    if name == "photos":
        return _photos(limit)
    path = Path(os.path.expanduser(name)) if name else Path("(no name given)")
    if os.path.isfile(path):  # unlike Path.is_file no error for a name that no file can have
        return _files(path.name, [path], limit)
    if not os.path.isdir(path):
        raise SpecError(f"data {name!r} is neither 'shapes', 'photos' nor a folder or image file that exists")
    try:
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise SpecError(f"folder {name} cannot be listed: {error.strerror}") from error
    if not found:
        raise SpecError(f"folder {name} holds no image ({', '.join(sorted(SUFFIXES))})")
    return _files(path.name, found, limit)
