"""Images as a model sees them, with what is known of them: names, true classes, objects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from attncompare.arguments import check_images, check_model
from attncompare.benchmark.plan import read_chunk
from attncompare.data.datasets import Dataset, Sample
from attncompare.data.images import Picture, fit_image, fit_mask, listed, load_images, to_tensor
from attncompare.errors import ImageError
from attncompare.models.adapter import ModelAdapter


@dataclass(frozen=True)
class Pictures:
    """B images at a model's size.

    images: (B,3,H,W) in [0, 1]. labels: the name of the true class, "" where it is not known. masks: (B,H,W) bool, the
    object that decides the class; empty where it is not known. unreadable: name -> reason, of files that are no images.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: tuple[str, ...]
    masks: Tensor
    unreadable: Mapping[str, str] = field(default_factory=dict)


Given = Tensor | Picture | Sequence[Picture] | Dataset | Pictures
"""(B,3,H,W) in [0, 1] at the model's size; files or (H,W,3) uint8 arrays; or a data set, as open_dataset returns it."""


def pictures_of(model: ModelAdapter, given: Given) -> Pictures:
    """Fit what was given to a model; ImageError when no image of it can be read, SpecError for a tensor of another shape.

    >>> import attncompare as ac
    >>> found = pictures_of(ac.load_model("demo/cnn"), ac.open_dataset("shapes", limit=2))
    >>> found.images.shape, found.names[0], found.labels, bool(found.masks.any())
    (torch.Size([2, 3, 64, 64]), 'shapes-test-00000', ('tee', 'tee'), True)
    """
    if isinstance(given, Dataset):
        found = _of_dataset(model, given)
        if not found.names:
            raise ImageError(f"{given.name}: no image can be read; {next(iter(found.unreadable.values()))}")
        return found
    if isinstance(given, Pictures):
        check_images(model, given.images)
        return given
    if isinstance(given, Tensor):
        images = check_images(model, given)
        names = [f"image {number}" for number in range(len(images))]
    else:
        check_model(model)
        pictures = listed(given)
        images = load_images(pictures, model)
        names = [
            Path(one).name if isinstance(one, str | Path) else f"image {number}" for number, one in enumerate(pictures)
        ]
    empty = torch.zeros(len(images), *model.size, dtype=torch.bool)
    return Pictures(images, tuple(names), ("",) * len(names), empty)


def _of_dataset(model: ModelAdapter, dataset: Dataset) -> Pictures:
    """Everything that a data set knows; files that cannot be read are named."""
    check_model(model)
    chunk = read_chunk(dataset, dataset.names)
    how = model.source.preprocessing
    images = [to_tensor(fit_image(sample.image, how)) for sample in chunk.samples]
    masks = [_mask_of(model, sample) for sample in chunk.samples]
    return Pictures(
        torch.stack(images).to(model.device) if images else torch.empty(0, 3, *model.size),
        tuple(sample.name for sample in chunk.samples),
        tuple(_class_of(dataset, sample) for sample in chunk.samples),
        torch.stack(masks) if masks else torch.empty(0, *model.size, dtype=torch.bool),
        {name: failure.reason for name, failure in chunk.unreadable.items()},
    )


def batches_of(model: ModelAdapter, dataset: Dataset, size: int) -> Iterator[Pictures]:
    """The pictures of a data set, so many at a time; a batch may hold nothing but names of unreadable files."""
    for start in range(0, len(dataset.names), size):
        yield _of_dataset(model, replace(dataset, names=dataset.names[start : start + size]))


def _class_of(dataset: Dataset, sample: Sample) -> str:
    return "" if sample.label is None or dataset.class_names is None else dataset.class_names[sample.label]


def _mask_of(model: ModelAdapter, sample: Sample) -> Tensor:
    """(H,W) bool as the model sees it."""
    if sample.mask is None:
        return torch.zeros(*model.size, dtype=torch.bool)
    return fit_mask(sample.mask, model.source.preprocessing)
