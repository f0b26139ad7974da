"""The curve engine: all maps, both directions and all images of a chunk flow through the same batches.

RISE (Petsiuk et al., arXiv:1806.07421, section 4.1) removes or inserts pixels in the order of a map and plots the score.
Here one stable sort per map gives every pixel the step at which it changes; an altered image is then one `where`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from attncompare.maps import resize_map
from attncompare.metrics._base import Evidence
from attncompare.metrics.protocols import Baseline, Protocol

Score = Callable[[Tensor, Tensor], Tensor]
"""(images (n,3,H,W), which clean image each one is a copy of (n,)) -> scores (n,)."""

BLUR_SIDE, BLUR_SIGMA = 11, 5.0


def blur_kernel() -> Tensor:
    """(11,11) RISE's kernel: scipy's response to a delta, with reflecting borders, so nearly flat (max / min = 1.14)."""
    delta = np.zeros((BLUR_SIDE, BLUR_SIDE))
    delta[BLUR_SIDE // 2, BLUR_SIDE // 2] = 1
    return torch.from_numpy(gaussian_filter(delta, BLUR_SIGMA)).float()


def baseline_images(images: Tensor, kind: Baseline, mean: Sequence[float]) -> Tensor:
    """(B,3,H,W) what takes the place of removed pixels. mean: the model's mean colour, which also pads the blur."""
    colour = torch.tensor(mean, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
    if kind == "black":
        return torch.zeros_like(images)
    if kind == "mean":
        return colour.expand_as(images).clone()
    kernel = blur_kernel().to(images).expand(images.shape[1], 1, -1, -1)
    return colour + F.conv2d(images - colour, kernel, padding=BLUR_SIDE // 2, groups=images.shape[1])


def rank_units(values: Tensor, seed: int) -> Tensor:
    """(U,) values -> (U,) rank of each unit, 0 for the largest; ties in the order of a seeded permutation."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(values), generator=generator)
    order = shuffled[torch.argsort(values.cpu()[shuffled], descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks


def change_step(values: Tensor, size: tuple[int, int], protocol: Protocol, seed: int = 0) -> Tensor:
    """(h,w) map -> (H,W) int16: the step, 1 to n, at which each pixel changes."""
    steps = protocol.count(size)
    if protocol.cells is None:
        full = resize_map(values[None], size)[0]
        ranks = rank_units(full.flatten(), seed)
    else:
        full = resize_map(values[None], size)[0]
        ranks = rank_units(_cell_means(full.cpu(), protocol.cells).flatten(), seed)
    units = len(ranks)
    # After step k round(k U / n) units have changed; Python's round is to even, as is numpy's.
    borders = torch.from_numpy(np.rint(np.arange(1, steps + 1) * units / steps).astype(np.int64))
    at = torch.searchsorted(borders, ranks, right=True) + 1
    if protocol.cells is None:
        return at.reshape(size).to(torch.int16)
    rows, columns = (_cell_of(length, protocol.cells) for length in size)
    return at.reshape(protocol.cells, protocol.cells)[rows][:, columns].to(torch.int16)


def _cell_of(length: int, cells: int) -> Tensor:
    """(length,) the cell of each pixel; border i lies at floor(i * length / cells)."""
    borders = torch.tensor([i * length // cells for i in range(1, cells + 1)])
    return torch.searchsorted(borders, torch.arange(length), right=True)


def _cell_means(full: Tensor, cells: int) -> Tensor:
    """(H,W) -> (cells,cells) mean map value per cell."""
    rows, columns = _cell_of(full.shape[0], cells), _cell_of(full.shape[1], cells)
    index = (rows[:, None] * cells + columns[None, :]).flatten()
    total = torch.zeros(cells * cells, dtype=torch.float64).index_add_(0, index, full.flatten().double())
    count = torch.bincount(index, minlength=cells * cells)
    return (total / count).reshape(cells, cells)


@dataclass(frozen=True)
class Task:
    """One altered image: copy `image`, with the pixels that change up to `step` taken from `inside`, else `outside`."""

    map: str
    curve: Evidence
    image: int
    step: int
    change: Tensor
    inside: Tensor
    outside: Tensor


def perturbation_curves(
    score: Score,
    images: Tensor,
    maps: Mapping[str, Tensor],
    protocol: Protocol,
    curves: Sequence[Evidence],
    *,
    mean: Sequence[float],
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[Evidence, Tensor]]:
    """The deletion and insertion curves of many maps of the same images.

    images: (B,3,H,W) in [0, 1]. maps: name -> (B,h,w). Returns name -> curve -> (B,n+1). Each end point (the clean
    image, each baseline) is scored once per image and shared by all maps; everything else streams in batches.
    """
    size = (int(images.shape[2]), int(images.shape[3]))
    steps, count = protocol.count(size), len(images)
    kinds: dict[Evidence, Baseline] = {
        Evidence.DELETION_CURVE: protocol.deletion,
        Evidence.INSERTION_CURVE: protocol.insertion,
    }
    baselines = {kind: baseline_images(images, kind, mean) for kind in {kinds[c] for c in curves}}
    everything = torch.arange(count, device=images.device)
    ends = {kind: _in_batches(score, base, everything, batch_size) for kind, base in baselines.items()}
    clean = _in_batches(score, images, everything, batch_size)
    found = {name: {curve: torch.empty(count, steps + 1) for curve in curves} for name in maps}
    for name in maps:
        for curve in curves:
            start, end = (clean, ends[kinds[curve]])
            if curve is Evidence.INSERTION_CURVE:
                start, end = end, start
            found[name][curve][:, 0], found[name][curve][:, -1] = start, end

    tasks = _tasks(images, maps, protocol, {curve: baselines[kinds[curve]] for curve in curves}, seed)
    buffer = images.new_empty(batch_size, *images.shape[1:])
    while batch := list(islice(tasks, batch_size)):
        for place, task in zip(buffer, batch, strict=False):
            torch.where(task.change <= task.step, task.inside, task.outside, out=place)
        which = torch.tensor([task.image for task in batch], device=images.device)
        values = score(buffer[: len(batch)], which).float().cpu()
        for task, value in zip(batch, values, strict=True):
            found[task.map][task.curve][task.image, task.step] = value
    return found


def _tasks(
    images: Tensor, maps: Mapping[str, Tensor], protocol: Protocol, baselines: Mapping[Evidence, Tensor], seed: int
) -> Iterator[Task]:
    """Every altered image between the end points, map by map."""
    size = (int(images.shape[2]), int(images.shape[3]))
    for name, values in maps.items():
        for image in range(len(images)):
            change = change_step(values[image], size, protocol, seed).to(images.device)
            for curve, base in baselines.items():
                inside, outside = base[image], images[image]
                if curve is Evidence.INSERTION_CURVE:
                    inside, outside = outside, inside
                for step in range(1, protocol.count(size)):
                    yield Task(name, curve, image, step, change, inside, outside)


def _in_batches(score: Score, images: Tensor, which: Tensor, batch_size: int) -> Tensor:
    parts = zip(torch.split(images, batch_size), torch.split(which, batch_size), strict=True)
    return torch.cat([score(part, index).float().cpu() for part, index in parts])


def area_under_curve(curve: Tensor) -> Tensor:
    """(B,n+1) scores at x = 0, 1/n, ..., 1 -> (B,) trapezoid area.

    >>> area_under_curve(torch.tensor([[1.0, 0.5, 0.0]])).tolist()
    [0.5]
    """
    return torch.trapezoid(curve.double(), dx=1 / (curve.shape[1] - 1), dim=1).float()


LEAST_DIFFERENCE = 0.01


def rescaled_curve(curve: Tensor, *, clean: int, base: int) -> Tensor:
    """(B,n+1) rescaled so that the clean end is 1 and the baseline end 0; NaN where they differ by less than 0.01."""
    low, high = curve[:, base, None], curve[:, clean, None]
    span = high - low
    return torch.where(span.abs() >= LEAST_DIFFERENCE, (curve - low) / span, torch.full_like(curve, torch.nan))
