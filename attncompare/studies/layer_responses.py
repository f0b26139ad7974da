"""What the layers of a model respond to: maps of several layers from one forward pass, and numbers that compare them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.arguments import check_model
from attncompare.benchmark.evidence import with_smaller_batches
from attncompare.benchmark.layer_maps import strongest_channels
from attncompare.capture.forward_pass import Recorded, record
from attncompare.errors import CaptureError, SpecError
from attncompare.models.adapter import ModelAdapter, resolve_layer
from attncompare.signals._base import request
from attncompare.studies.layer_measures import measure_maps
from attncompare.studies.pictures import Given, Pictures, pictures_of

BATCH = 16


@dataclass(frozen=True)
class LayerResponse:
    """One layer on B images.

    mean: (B,h,w) channel mean of its output, as the method `activation` gives it. magnitude: (B,h,w) channel mean of the
    absolute output, equal to `mean` behind a ReLU; this is what is measured, since shares of a map that changes its sign
    mean nothing. index: (B,K) the channels with the largest mean activation, that one first; strongest: (B,K,h,w) their
    maps. channels: how many the layer has.
    """

    layer: str
    channels: int
    mean: NDArray[np.float32]
    magnitude: NDArray[np.float32]
    index: NDArray[np.int64]
    strongest: NDArray[np.float32]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.mean.shape[1], self.mean.shape[2]


@dataclass(frozen=True)
class LayerStudy:
    """What the layers of a model, shallow to deep, respond to in some images.

    predicted: the name of the class that the model chooses, "" for an embedding; probability: (B,) of that class.
    """

    model: str
    pictures: Pictures
    predicted: tuple[str, ...]
    probability: NDArray[np.float64]
    layers: tuple[LayerResponse, ...]

    def table(self) -> pd.DataFrame:
        """One row per image and layer: grid, channels, mean activation, and the measures of `measure_maps`."""
        rows = []
        images, masks = self.pictures.images, self.pictures.masks
        for depth, one in enumerate(self.layers, start=1):
            found = measure_maps(torch.from_numpy(one.magnitude), images, masks)
            for row, name in enumerate(self.pictures.names):
                about = {"model": self.model, "image": name, "layer": one.layer, "depth": depth}
                about |= {"grid": f"{one.grid[0]}x{one.grid[1]}", "channels": one.channels}
                about |= {"mean": float(one.mean[row].mean())}
                rows.append(about | {measure: float(values[row]) for measure, values in found.items()})
        table = pd.DataFrame(rows)
        return table.sort_values(["image", "depth"], kind="stable", ignore_index=True)


def default_layers(model: ModelAdapter) -> tuple[str, ...]:
    """One layer per stage; the transformer blocks of a ViT.

    >>> import attncompare as ac
    >>> default_layers(ac.load_model("demo/cnn")), default_layers(ac.load_model("demo/vit"))[:2]
    (('0.2', '0', '1', '2'), ('blocks.0', 'blocks.1'))
    """
    structure = model.structure
    return structure.token_blocks if model.family == "vit" and structure.token_blocks else structure.stages


def layers(
    model: ModelAdapter, images: Given, layers: str | Sequence[str] | None = None, channels: int = 3
) -> LayerStudy:
    """Record several layers of a model in one forward pass over the images.

    images: (B,3,H,W) in [0, 1], files, or a data set with labels and masks. layers: module paths, shallow to deep;
    `default_layers` when not given. channels: how many of each layer's strongest are kept. Raises UnknownNameError for a
    layer that the model lacks, CaptureError for one whose output does not lie on the image.

    >>> import attncompare as ac
    >>> study = layers(ac.load_model("demo/cnn"), ac.open_dataset("shapes", limit=1), ["0", "2"])
    >>> study.table()[["layer", "grid", "channels"]].values.tolist()
    [['0', '32x32', 32], ['2', '8x8', 128]]
    """
    paths = _checked(model, layers, channels)
    pictures = pictures_of(model, images)

    def run(size: int) -> LayerStudy:
        parts = [_record(model, part, paths, channels) for part in torch.split(pictures.images, size)]
        outputs = [capture for capture, _ in parts]
        return LayerStudy(
            model.name,
            pictures,
            tuple(_predicted(model, int(one)) for found in outputs for one in found.target),
            np.concatenate([_probability(found) for found in outputs]),
            tuple(_joined(same) for same in zip(*(found for _, found in parts), strict=True)),
        )

    return with_smaller_batches(run, BATCH)


def _checked(model: ModelAdapter, layers: str | Sequence[str] | None, channels: int) -> tuple[str, ...]:
    """The layers' paths; SpecError for settings that are not allowed."""
    check_model(model)
    if channels < 1:
        raise SpecError(f"channels must be at least 1, not {channels}")
    paths = default_layers(model) if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if layers is not None and not paths:
        raise SpecError("layers is empty; name module paths, or leave it out for one layer per stage")
    if not paths:
        raise CaptureError(
            f"{model.name} has no layer whose output was seen to lie on the image; name one with layers="
        )
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise SpecError(f"layers: {', '.join(twice)} is listed twice")
    return tuple(resolve_layer(model, path) for path in paths)


def _record(
    model: ModelAdapter, images: Tensor, paths: Sequence[str], channels: int
) -> tuple[Recorded, list[LayerResponse]]:
    """One pass over one batch."""
    needs = {path: request("features", layer=path) for path in paths}
    found = record(model, images, needs.values(), "embedding" if model.embedding else None)
    return found, [_response(path, found.signals[need], channels) for path, need in needs.items()]


def _response(path: str, features: object, channels: int) -> LayerResponse:
    assert isinstance(features, Tensor)
    features = features.float()
    index, strongest = strongest_channels(features, channels)
    maps = (features.mean(dim=1), features.abs().mean(dim=1))
    mean, magnitude = (one.cpu().numpy() for one in maps)
    return LayerResponse(
        path, features.shape[1], mean, magnitude, index.cpu().numpy(), strongest.contiguous().cpu().numpy()
    )


def _joined(parts: Sequence[LayerResponse]) -> LayerResponse:
    """The same layer of several batches."""
    names = ("mean", "magnitude", "index", "strongest")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return LayerResponse(parts[0].layer, parts[0].channels, **arrays)


def _predicted(model: ModelAdapter, index: int) -> str:
    return "" if model.embedding else model.class_name(index)


def _probability(found: Recorded) -> NDArray[np.float64]:
    assert found.probability is not None
    return found.probability.cpu().double().numpy()
