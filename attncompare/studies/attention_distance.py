"""How far the heads of a vision transformer look: the mean attention distance (Dosovitskiy et al., arXiv:2010.11929)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.arguments import check_model
from attncompare.benchmark.evidence import with_smaller_batches
from attncompare.capture.forward_pass import record
from attncompare.errors import UnsupportedModelError
from attncompare.inspection.layout import TokenLayout
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import request
from attncompare.studies.pictures import Given, pictures_of

BATCH = 4  # the full attention of every block is kept: L x heads x N x N numbers an image


@dataclass(frozen=True)
class AttentionDistances:
    """values: (B,L,heads) mean attention distance in pixels of the model's input, of each image, block and head.

    blocks: (L) module paths, shallow to deep. uniform: what a head that attends to all patches alike would have.
    """

    model: str
    names: tuple[str, ...]
    blocks: tuple[str, ...]
    values: NDArray[np.float64]
    uniform: float


def patch_distances(layout: TokenLayout, size: tuple[int, int]) -> Tensor:
    """(P,P) distance in pixels between the centers of the patches of an image of that size (H, W).

    >>> patch_distances(TokenLayout(1, (1, 3)), (8, 24)).tolist()
    [[0.0, 8.0, 16.0], [8.0, 0.0, 8.0], [16.0, 8.0, 0.0]]
    """
    h, w = layout.grid
    rows, columns = torch.meshgrid(torch.arange(h) * size[0] / h, torch.arange(w) * size[1] / w, indexing="ij")
    centers = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    return (centers[:, None] - centers[None]).square().sum(dim=2).sqrt()


def mean_attention_distance(attention: Tensor, layout: TokenLayout, size: tuple[int, int]) -> Tensor:
    """(B,heads,N,N) attention -> (B,heads) pixels: the distance of query and key patch, weighted by attention.

    The mean over all query patches. Attention to prefix tokens, which have no place on the image, is left out: the rest of a
    row is scaled to sum to 1, and a query that attends to no patch at all is not counted.

    >>> half = torch.full((1, 1, 3, 3), 1 / 3)  # a class token and two patches, 8 pixels apart
    >>> mean_attention_distance(half, TokenLayout(1, (1, 2)), (8, 16)).tolist()
    [[4.0]]
    """
    patches = attention[:, :, layout.prefix :, layout.prefix :].double()
    reach = (patches * patch_distances(layout, size).to(patches)).sum(dim=-1)
    return (reach / patches.sum(dim=-1)).nanmean(dim=-1)


def attends(model: ModelAdapter) -> bool:
    """Whether a model has blocks of global attention between patches, whose distance can be measured."""
    return "attention" in model.supplies and bool(_measurable(model))


def _measurable(model: ModelAdapter) -> list[int]:
    """The attention blocks in which every patch has a query."""
    return [i for i, path in enumerate(model.structure.attention_blocks) if path not in model.structure.pooling_blocks]


def attention_distances(model: ModelAdapter, images: Given) -> AttentionDistances:
    """The mean attention distance of every block and head on each image.

    images: (B,3,H,W) in [0, 1], files, or a data set. Blocks with one query (class attention) have no distance and are left
    out. Raises UnsupportedModelError for a model without global attention between patches.

    >>> import attncompare as ac
    >>> found = attention_distances(ac.load_model("demo/vit"), torch.rand(2, 3, 64, 64))
    >>> found.values.shape, bool((found.values < 64 * 2**0.5).all())
    ((2, 6, 4), True)
    """
    check_model(model)
    kept, layout = _measurable(model), model.attention_tokens
    if not attends(model) or layout is None:
        reason = model.missing.get("attention", "its blocks have one query each")
        raise UnsupportedModelError(f"{model.name} has no attention distance: {reason}")
    pictures = pictures_of(model, images)

    def run(size: int) -> Tensor:
        return torch.cat([_distances(model, part, kept, layout) for part in torch.split(pictures.images, size)])

    values = with_smaller_batches(run, BATCH).cpu().numpy()
    blocks = tuple(model.structure.attention_blocks[i] for i in kept)
    uniform = float(patch_distances(layout, model.size).double().mean())
    return AttentionDistances(model.name, pictures.names, blocks, values, uniform)


def _distances(model: ModelAdapter, images: Tensor, kept: list[int], layout: TokenLayout) -> Tensor:
    """(B,L,heads) of one batch."""
    need = request("attention")
    found = record(model, images, [need], "embedding" if model.embedding else None).signals[need]
    assert isinstance(found, list)
    return torch.stack([mean_attention_distance(found[i], layout, model.size) for i in kept], dim=1)
