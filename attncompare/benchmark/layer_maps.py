"""Maps inside a model, kept for looking at: every head of every block, and the strongest channels of every stage."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.benchmark.evidence import with_smaller_batches
from attncompare.benchmark.saved import DAMAGE
from attncompare.capture.forward_pass import record
from attncompare.data.datasets import Sample
from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import CaptureError, Failure, ResultFormatError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import request
from attncompare.storage.folder import CellFiles, Location, RunFolder, npz_of

Kind = Literal["head", "channel"]
T = TypeVar("T")
CHANNELS = 8
"""How many channels of a stage are kept: those with the largest mean activation on the image."""


@dataclass(frozen=True)
class LayerMap:
    """One layer of a model on one image.

    kind "head": index (K,) counts the heads, maps (K,h,w) are the attention of the rows that the score is read from, on
    the patch grid. "channel": index (K,) names the channels with the largest mean activation, that one first, and maps
    (K,h,w) are their activations. mean (K,): the mean of each map; of attention, the share that lies on one patch.
    """

    layer: str
    kind: Kind
    index: NDArray[np.int64]
    maps: NDArray[np.float32]

    @property
    def mean(self) -> NDArray[np.float32]:
        """(K,) the mean activation of each map."""
        return np.asarray(self.maps.mean(axis=(1, 2)), dtype=np.float32)


def evenly(found: Sequence[T], most: int) -> list[T]:
    """At most so many of some things, evenly spaced, with the first and the last.

    >>> evenly("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(found) <= most:
        return list(found)
    return [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]


def record_layers(model: ModelAdapter, images: Tensor, batch_size: int = 8) -> list[list[LayerMap]]:
    """Per image (B,3,H,W) its layers, shallow to deep, from one forward pass.

    A model whose attention is recorded has its blocks with all heads; any other, and one that attends in its last
    layers only, its stages (one layer per resolution) with their strongest channels.

    >>> import attncompare as ac
    >>> layers = record_layers(ac.load_model("demo/vit"), torch.rand(1, 3, 64, 64))[0]
    >>> len(layers), layers[0].layer, layers[0].maps.shape
    (6, 'blocks.0.attn', (4, 8, 8))
    """

    def run(size: int) -> list[list[LayerMap]]:
        return [layers for part in torch.split(images, size) for layers in _record(model, part)]

    return with_smaller_batches(run, batch_size)


def _record(model: ModelAdapter, images: Tensor) -> list[list[LayerMap]]:
    """The layers of one batch."""
    structure, attends = model.structure, "class_attention" in model.supplies
    heads = request("class_attention")
    paths = () if attends and model.family == "vit" else structure.stages
    stages = {path: request("features", layer=path) for path in paths}
    needs = [*stages.values(), *([heads] if attends else [])]
    if not needs:
        raise CaptureError(f"{model.name} has neither attention nor features that lie on the image")
    found = record(model, images, needs, "embedding" if model.embedding else None).signals
    layers = [_channels(path, found[need]) for path, need in stages.items()]
    if attends:
        pooling = structure.pooling_blocks
        blocks = [path for path in structure.attention_blocks if not pooling or path in pooling]
        layers += [_heads(model, path, rows) for path, rows in zip(blocks, found[heads], strict=True)]  # type: ignore[call-overload]
    return [list(of_image) for of_image in zip(*layers, strict=True)]


def _heads(model: ModelAdapter, path: str, rows: Tensor) -> list[LayerMap]:
    """Per image the heads (K,h,w) of one block, from rows (B,heads,N)."""
    layout = model.attention_tokens
    assert layout is not None
    maps = layout.to_grid(rows.transpose(1, 2)).float().cpu().numpy()
    return [LayerMap(path, "head", np.arange(len(one)), one) for one in maps]


def _channels(path: str, features: object) -> list[LayerMap]:
    """Per image the strongest channels (K,h,w) of one stage, from features (B,C,h,w)."""
    assert isinstance(features, Tensor)
    pairs = zip(*strongest_channels(features, CHANNELS), strict=True)
    return [LayerMap(path, "channel", index.cpu().numpy(), maps.float().cpu().numpy()) for index, maps in pairs]


def strongest_channels(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of features (B,C,h,w) the channels with the largest mean activation: index (B,K), maps (B,K,h,w), the first first.

    >>> index, maps = strongest_channels(torch.tensor([[[[1.0]], [[3.0]], [[2.0]]]]), 2)
    >>> index.tolist(), maps.flatten().tolist()
    ([[1, 2]], [3.0, 2.0])
    """
    index = features.mean(dim=(2, 3)).topk(min(count, features.shape[1]), dim=1).indices
    return index, torch.take_along_dim(features, index[:, :, None, None], dim=1)


@dataclass(frozen=True)
class SavedLayers:
    """The layers of one model on some images, or the reason why there are none."""

    model: str
    images: dict[str, list[LayerMap]]
    refused: Failure | None = None


class LayerArchive:
    """layers/KEY.npz: the layers of one model on one chunk of images, under the key of the chunk's first cell."""

    def __init__(self, folder: Location) -> None:
        self.files = CellFiles(RunFolder(folder), "layers", "npz")

    def exists(self, key: str) -> bool:
        """Whether there are layers of a chunk, readable or not."""
        return self.files.exists(key)

    def holds(self, key: str) -> bool:
        """Whether the layers of a chunk are there and readable; a failure may be one to be tried again."""
        try:
            refused = self.read(key).refused
            return refused is None or not refused.retry
        except ResultFormatError:
            return False

    def write(self, key: str, saved: SavedLayers) -> None:
        """Save the layers of a chunk; every image has the same ones."""
        arrays: dict[str, NDArray[np.generic]] = {
            "who": np.array([saved.model, saved.refused.reason if saved.refused else ""], dtype=np.str_),
            "images": np.array(list(saved.images), dtype=np.str_),
        }
        layers = list(zip(*saved.images.values(), strict=True))
        arrays["layers"] = np.array([[same[0].layer, same[0].kind] for same in layers], dtype=np.str_).reshape(-1, 2)
        for number, same in enumerate(layers):
            arrays[f"index{number}"] = np.stack([one.index for one in same])
            arrays[f"maps{number}"] = np.stack([one.maps for one in same])
        if saved.refused:
            arrays["failure"] = np.array([saved.refused.kind, "retry" * saved.refused.retry], dtype=np.str_)
        self.files.write(key, npz_of(arrays))

    def read(self, key: str) -> SavedLayers:
        """Load the layers of a chunk; ResultFormatError when the file is missing or damaged."""
        try:
            with np.load(io.BytesIO(self.files.read(key)), allow_pickle=False) as stored:
                model, reason = (str(word) for word in stored["who"])
                kind, retry = stored.get("failure", ("error", "retry"))  # an earlier file says neither
                refused = Failure(str(kind), reason, retry == "retry") if reason else None
                found: dict[str, list[LayerMap]] = {str(name): [] for name in stored["images"]}
                for number, (layer, kind) in enumerate(stored["layers"]):
                    rows = zip(found.values(), stored[f"index{number}"], stored[f"maps{number}"], strict=True)
                    for layers, index, maps in rows:
                        layers.append(LayerMap(str(layer), "head" if kind == "head" else "channel", index, maps))
                return SavedLayers(model, found, refused)
        except DAMAGE as error:
            raise ResultFormatError(
                f"layers of cell {key[:12]} cannot be read: {error}; run the benchmark again"
            ) from error


def keep_layers(
    archive: LayerArchive, key: str, model: ModelAdapter, samples: Sequence[Sample], batch_size: int
) -> None:
    """Save the layers of a chunk unless they are there; a fault becomes the reason that is kept in their place."""
    if not samples or archive.holds(key):
        return
    images = torch.stack([to_tensor(fit_image(one.image, model.source.preprocessing)) for one in samples])
    try:
        layers = record_layers(model, images.to(model.device), batch_size)
        saved = SavedLayers(model.name, {one.name: found for one, found in zip(samples, layers, strict=True)})
    except Exception as error:  # whatever a model does wrong must not end the run: its maps and scores do not need this
        saved = SavedLayers(model.name, {}, Failure.of(error))
    archive.write(key, saved)


@dataclass(frozen=True)
class LayerMaps:
    """The layers that a run kept, by model and image."""

    chunks: tuple[SavedLayers, ...]

    @staticmethod
    def open(folder: Location, keys: Iterable[str]) -> "LayerMaps":
        """Read a run folder; keys: of the run's cells, as in the column `key` of its records."""
        archive = LayerArchive(folder)
        return LayerMaps(tuple(archive.read(key) for key in keys if archive.exists(key)))

    def of(self, model: str, image: str) -> list[LayerMap]:
        """The layers of a model on an image, shallow to deep; [] when none were kept."""
        return next((one.images[image] for one in self.chunks if one.model == model and image in one.images), [])

    def refused(self, model: str) -> str:
        """Why a model has no layers, or ""."""
        return next((one.refused.reason for one in self.chunks if one.model == model and one.refused), "")
