"""Images to train on: the synthetic shapes, a folder with a sub-folder per class, or a data set of torchvision."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.data.datasets import SUFFIXES
from attncompare.data.images import read_image
from attncompare.data.shapes import CLASS_NAMES, render_shape
from attncompare.errors import SpecError
from attncompare.models.preprocessing import Preprocessing, fit_image
from attncompare.models.sources.torchvision import image_set
from attncompare.training.spec import TrainSpec

Item = tuple[NDArray[np.uint8], int]
SHAPES = {"train": 8000, "val": 1000, "test": 2000}
HELD_OUT = 0.1  # share of the training images, for validation (and for a test) where the data has no such part
HASHED = 16  # images that are read for the fingerprint, of a set that keeps them in files
CACHE = 2 << 30  # bytes of decoded images that are kept, per part


@dataclass(frozen=True)
class Part:
    """Some images with their classes. load: number -> ((H,W,3) uint8 RGB, class). labels: (n,) without decoding anything.

    content: a hash that changes with the images; of a subset that of the whole.
    """

    labels: NDArray[np.int64]
    load: Callable[[int], Item]
    content: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Sequence[int] | NDArray[np.int64]) -> "Part":
        """Only some of them, in that order."""
        numbers = [int(number) for number in chosen]
        return replace(self, labels=self.labels[numbers], load=lambda number: self.load(numbers[number]))

    def fitted(self, how: Preprocessing) -> "Part":
        """As a model wants them; what was decoded is kept, as far as CACHE reaches."""

        def load(number: int) -> Item:
            image, label = self.load(number)
            return np.ascontiguousarray(fit_image(image, how)), label

        most = max(1, CACHE // (3 * how.size[0] * how.size[1]))
        return replace(self, load=lru_cache(maxsize=most)(load))

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(n,3,H,W) uint8 and (n,) classes; all images must be of one size."""
        images, labels = zip(*(self.load(int(number)) for number in numbers), strict=True)
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


@dataclass(frozen=True)
class TrainingData:
    """Images in three parts. fingerprint: of what they are, so that a resumed training notices other data.

    how: for which preprocessing they were fitted.
    """

    class_names: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    fingerprint: str
    how: Preprocessing | None = None

    def fitted(self, how: Preprocessing) -> "TrainingData":
        """As a model wants them; the same ones where they are so already, with what they keep."""
        if self.how == how:
            return self
        if self.how is not None:
            raise SpecError(
                f"the images were fitted for size {self.how.size}; they cannot be fitted for {how.size} as well"
            )
        train, validation, test = (part.fitted(how) for part in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test, how=how)


def open_training_data(spec: TrainSpec) -> TrainingData:
    """The data of a spec, in full size; SpecError where there is none of that name."""
    if spec.data == "shapes":
        names, parts = CLASS_NAMES, _shapes(spec)
    elif spec.data.startswith("torchvision:"):
        names, parts = _torchvision(spec)
    else:
        names, parts = _folder(Path(os.path.expanduser(spec.data)))
    train, validation, test = _complete(parts)
    limits = (spec.train_images, spec.validation_images, spec.test_images)
    train, validation, test = (_limited(p, most) for p, most in zip((train, validation, test), limits, strict=True))
    marks = (part.labels.tobytes() + part.content.encode() for part in (train, validation, test))
    digest = hashlib.sha256(b"".join(marks)).hexdigest()
    return TrainingData(names, train, validation, test, f"{spec.data} {len(train)} {digest[:16]}")


def _limited(part: Part, most: int | None) -> Part:
    """At most so many, drawn once and for all."""
    if most is None or most >= len(part):
        return part
    return part.take(np.sort(np.random.default_rng(0).permutation(len(part))[:most]))


def _complete(parts: dict[str, Part]) -> tuple[Part, Part, Part]:
    """Training, validation and test; what is missing is held out from the training images, class by class."""
    train, validation, test = (parts.get(name) for name in ("train", "val", "test"))
    assert train is not None
    lacking = " and ".join(f"a {name}/ folder" for name in ("val", "test") if name not in parts)
    if test is None and validation is not None:
        validation, test = None, validation  # what others report on; the schedule must not look at it
    if test is None:
        train, test = _held_out(train, lacking)
    if validation is None:
        train, validation = _held_out(train, lacking)
    return train, validation, test


def _held_out(part: Part, lacking: str) -> tuple[Part, Part]:
    """(the rest, a tenth of every class), the same ones every time. lacking: what would make that unnecessary."""
    order = np.random.default_rng(0).permutation(len(part))
    held: list[int] = []
    for label in np.unique(part.labels):
        of_class = [int(number) for number in order if part.labels[number] == label]
        if len(of_class) < 2:
            raise SpecError(f"class {label} has {len(of_class)} image left to train on; add images, or {lacking}")
        held += of_class[: max(1, round(HELD_OUT * len(of_class)))]
    rest = np.setdiff1d(np.arange(len(part)), held)
    return part.take(rest), part.take(sorted(held))


def _shapes(spec: TrainSpec) -> dict[str, Part]:
    given = {"train": spec.train_images, "val": spec.validation_images, "test": spec.test_images}
    return {split: _shapes_of(split, given[split] or count) for split, count in SHAPES.items()}


def _shapes_of(split: str, count: int) -> Part:
    @lru_cache(maxsize=max(1, CACHE // (3 * 64 * 64)))
    def load(number: int) -> Item:
        drawn = render_shape(number, split)
        return drawn.image, drawn.label

    return Part(np.array([load(number)[1] for number in range(count)], dtype=np.int64), load)


def _folder(root: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """One sub-folder per class, or train/ (and val/, test/) of such."""
    if not root.is_dir():
        raise SpecError(f"data {str(root)!r} is neither 'shapes', 'torchvision:NAME' nor a folder that exists")
    named = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
    found = {
        part: next((root / name for name in names if (root / name).is_dir()), None) for part, names in named.items()
    }
    folders = {part: path for part, path in found.items() if path} if found["train"] else {"train": root}
    names = _class_folders(folders["train"])
    if len(names) < 2:
        raise SpecError(
            f"folder {folders['train']} has {len(names)} sub-folders; one for each of several classes is needed"
        )
    return names, {part: _classes(path, names) for part, path in folders.items()}


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _classes(folder: Path, names: tuple[str, ...]) -> Part:
    unknown = sorted(set(_class_folders(folder)) - set(names))
    if unknown:
        raise SpecError(f"folder {folder} has classes to which there are no training images: {', '.join(unknown)}")
    listed = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
    ]
    absent = sorted(set(names) - {names[label] for _, label in listed})
    if absent:
        raise SpecError(f"folder {folder} holds no image of the class {absent[0]}")
    return Part(
        np.array([label for _, label in listed]),
        lambda number: (read_image(listed[number][0]), listed[number][1]),
        _files_hash(folder, [path for path, _ in listed]),
    )


def _hidden(path: Path) -> bool:
    """Whether it is one of those that other programs leave behind, such as .ipynb_checkpoints/ and ._01.png."""
    return any(name.startswith(".") for name in path.parts)


def _files_hash(folder: Path, paths: Sequence[Path]) -> str:
    """Of names, sizes and times of change: reading every file would take minutes where there are a million."""
    digest = hashlib.sha256()
    for path in paths:
        seen = path.stat()
        digest.update(
            f"{path.relative_to(folder)}\0{seen.st_size}\0{seen.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def _torchvision(spec: TrainSpec) -> tuple[tuple[str, ...], dict[str, Part]]:
    name, root = spec.data.removeprefix("torchvision:"), Path(os.path.expanduser(spec.root))
    sets = {part: image_set(name, part, root, spec.download) for part in ("train", "val", "test")}
    sets = {part: found for part, found in sets.items() if found is not None}
    parts = {part: _of_set(spec.data, found) for part, found in sets.items()}
    if "train" not in parts:
        raise SpecError(f"{spec.data} has no training part")
    names = getattr(sets["train"], "classes", None) or [str(k) for k in range(int(parts["train"].labels.max()) + 1)]
    return tuple(str(name) for name in names), parts


def _of_set(name: str, found: Any) -> Part:
    """A torchvision data set, whose labels are read without decoding pictures where it keeps a list of them."""
    kept = next((getattr(found, key) for key in ("targets", "labels", "_labels") if hasattr(found, key)), None)
    try:
        labels = np.array(
            [int(found[number][1]) for number in range(len(found))] if kept is None else kept, dtype=np.int64
        )
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name} has no single class for every picture; give a folder instead") from error

    def load(number: int) -> Item:
        picture, _ = found[number]
        return np.asarray(picture.convert("RGB")), int(labels[number])

    return Part(labels, load, _pixels_hash(found, load))


def _pixels_hash(found: Any, load: Callable[[int], Item]) -> str:
    """Of all pixels where the set has them in memory, else of a few images from the first to the last."""
    pixels = getattr(found, "data", None)
    if isinstance(pixels, np.ndarray | Tensor):
        return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    numbers = np.unique(np.linspace(0, len(found) - 1, HASHED).astype(int)) if len(found) else ()
    return hashlib.sha256(b"".join(load(int(number))[0].tobytes() for number in numbers)).hexdigest()
