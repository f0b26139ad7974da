"""The curve engine: all maps, both directions and all images of a chunk flow through the same batches.

RISE (Petsiuk et al., arXiv:1806.07421, section 4.1) removes or inserts pixels in the order of a map and plots the score.
Here one stable sort per map gives every pixel the step at which it changes; an altered image is then one `where`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.maps import resize_map
from attncompare.metrics._base import Evidence, Score
from attncompare.metrics.protocols import Baseline, Protocol

BLUR_SIDE, BLUR_SIGMA = 11, 5.0


def blur_kernel() -> Tensor:
    """(11,11) RISE's kernel: scipy's response to a delta, with reflecting borders, so nearly flat (max / min = 1.14)."""
    delta = np.zeros((BLUR_SIDE, BLUR_SIDE))
    delta[BLUR_SIDE // 2, BLUR_SIDE // 2] = 1
    return torch.from_numpy(gaussian_filter(delta, BLUR_SIGMA)).float()


def baseline_images(images: Tensor, kind: Baseline, mean: Sequence[float]) -> Tensor:
    """(B,3,H,W) what takes the place of removed pixels. mean: the model's mean color, which also pads the blur."""
    color = torch.tensor(mean, dtype=images.dtype, device=images.device).reshape(1, -1, 1, 1)
    if kind == "black":
        return torch.zeros_like(images)
    if kind == "mean":
        return color.expand_as(images).clone()
    kernel = blur_kernel().to(images).expand(images.shape[1], 1, -1, -1)
    return color + F.conv2d(images - color, kernel, padding=BLUR_SIDE // 2, groups=images.shape[1])


@lru_cache(maxsize=4)
def _tie_order(count: int, seed: int) -> Tensor:
    """The permutation that decides between equal values; the same for all maps of a size."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _largest_first(values: Tensor) -> Tensor:
    """(U,) values -> (U,) their places from the largest to the smallest, equal ones in the order they stand in.

    Of float32, one sort of integers that hold the value above and the place below: a third of a stable argsort's time.
    """
    if values.dtype != torch.float32:
        return torch.argsort(values, descending=True, stable=True)
    bits = (values.detach() + 0.0).numpy().view(np.int32)  # -0.0 is 0.0
    rising = np.where(bits < 0, bits ^ np.int32(2**31 - 1), bits)  # as integers in the order of the floats
    keys = (~rising).astype(np.int64) << 32 | np.arange(len(bits))
    keys.sort()
    return torch.from_numpy(keys & (2**32 - 1))


def order_units(values: Tensor, seed: int) -> Tensor:
    """(U,) values -> (U,) units from the largest to the smallest; ties in the order of a seeded permutation."""
    shuffled = _tie_order(len(values), seed)
    return shuffled[_largest_first(values.cpu()[shuffled])]


def rank_units(values: Tensor, seed: int) -> Tensor:
    """(U,) values -> (U,) rank of each unit, 0 for the largest; ties in the order of a seeded permutation."""
    order = order_units(values, seed)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks


def change_step(values: Tensor, size: tuple[int, int], protocol: Protocol, seed: int = 0) -> Tensor:
    """(h,w) map -> (H,W) integers: the step, 1 to n, at which each pixel changes."""
    steps = protocol.count(size)
    full = resize_map(values[None], size)[0].cpu()
    order = order_units(full.flatten() if protocol.cells is None else _cell_means(full, protocol.cells).flatten(), seed)
    units = len(order)
    # After step k round(k U / n) units have changed; numpy's rint is to even, as is Python's round.
    changed = np.rint(np.arange(steps + 1) * units / steps).astype(np.int64)
    each = torch.arange(1, steps + 1, dtype=torch.int16 if steps < 2**15 else torch.int32)
    at = torch.empty(units, dtype=each.dtype)
    at[order] = each.repeat_interleave(torch.from_numpy(np.diff(changed)))
    if protocol.cells is None:
        return at.reshape(size)
    rows, columns = (_cell_of(length, protocol.cells) for length in size)
    return at.reshape(protocol.cells, protocol.cells)[rows][:, columns]


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
class Shot:
    """One image to be scored: `image`, with the pixels that change up to `step` from `inside`, the others from `outside`.

    places: the rows and columns of the curves that its score goes to.
    """

    image: int
    step: int
    change: Tensor
    inside: Tensor
    outside: Tensor
    places: tuple[tuple[Tensor, int], ...]

    def draw(self, out: Tensor) -> None:
        """Write the altered image (3,H,W)."""
        torch.where(self.change <= self.step, self.inside, self.outside, out=out)


@dataclass(frozen=True)
class Shots:
    """The images that a set of curves needs, each of them once.

    images: (B,3,H,W). maps: name -> (B,h,w). found: name -> curve -> (B,points), which whoever scores the shots fills.
    same: pairs of rows of one content, (to be copied to, from): maps that order an image's pixels alike share their shots.
    """

    images: Tensor
    maps: Mapping[str, Tensor]
    protocol: Protocol
    found: Mapping[str, Mapping[Evidence, Tensor]]
    mean: Sequence[float]
    seed: int
    same: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Shot]:
        """Image by image, so that the baselines of one image only are held at a time."""
        for image in range(len(self.images)):
            clean = self.images[image : image + 1]
            kinds = {kind for rows in self.found.values() for c in rows for kind in ends_of(self.protocol, c) if kind}
            drawn: dict[Baseline | None, Tensor] = {None: clean[0]}
            drawn |= {kind: baseline_images(clean, kind, self.mean)[0] for kind in sorted(kinds)}
            yield from self._end_points(image, drawn)
            yield from self._between(image, drawn)

    def _end_points(self, image: int, drawn: Mapping[Baseline | None, Tensor]) -> Iterator[Shot]:
        """The clean image and each baseline, for all curves that begin or end there."""
        nothing = torch.zeros(1, 1, dtype=torch.int16, device=self.images.device)
        steps = self.protocol.count(size_of(self.images))
        for kind, picture in drawn.items():
            places = []
            for curves in self.found.values():
                for curve, rows in curves.items():
                    start, finish = ends_of(self.protocol, curve)
                    places += [(rows[image], 0)] if start == kind else []
                    places += [(rows[image], steps)] if finish == kind and rows.shape[1] > steps else []
            if places:
                yield Shot(image, 0, nothing, picture, picture, tuple(places))

    def _between(self, image: int, drawn: Mapping[Baseline | None, Tensor]) -> Iterator[Shot]:
        """Every step of every curve, map by map."""
        size = size_of(self.images)
        seen: dict[tuple[Baseline | None, Baseline | None, bytes], Tensor] = {}
        for name, curves in self.found.items():
            found: dict[int, tuple[Tensor, bytes]] = {}
            for curve, rows in curves.items():
                sign = -1 if curve is Evidence.LEAST_FIRST_CURVE else 1
                if sign not in found:
                    found[sign] = self._change_step(sign * self.maps[name][image])
                change, content = found[sign]
                start, finish = ends_of(self.protocol, curve)
                order = (start, finish, content)
                if order in seen:
                    self.same.append((rows[image], seen[order]))
                    continue
                seen[order] = rows[image]
                for step in range(1, min(self.protocol.count(size), rows.shape[1])):
                    yield Shot(image, step, change, drawn[finish], drawn[start], ((rows[image], step),))

    def _change_step(self, values: Tensor) -> tuple[Tensor, bytes]:
        """(h,w) map -> the step at which each pixel changes, on the images' device, and a digest of it."""
        change = change_step(values, size_of(self.images), self.protocol, self.seed)
        return change.to(self.images.device), sha256(change.numpy().tobytes()).digest()


def ends_of(protocol: Protocol, curve: Evidence) -> tuple[Baseline | None, Baseline | None]:
    """What a curve starts from and what takes its place: a baseline, or None for the clean image."""
    if curve is not Evidence.INSERTION_CURVE:
        return None, protocol.deletion
    if protocol.insertion is None:
        raise SpecError(
            f"protocol {protocol.name} has no insertion; ask for morf, lerf or srg, or take another protocol"
        )
    return protocol.insertion, None


def size_of(images: Tensor) -> tuple[int, int]:
    """(H, W)."""
    return int(images.shape[2]), int(images.shape[3])


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
    """The curves of many maps of the same images, all through the same batches; no image is scored twice.

    images: (B,3,H,W) in [0, 1]. maps: name -> (B,h,w). curves: of CURVES. Returns name -> curve -> (B,points). End points
    are shared by all maps; images are drawn into one buffer, so that memory does not depend on how many maps there are.
    """
    points = len(protocol.shares(size_of(images)))
    found = {name: {curve: torch.full((len(images), points), torch.nan) for curve in curves} for name in maps}
    shots = Shots(images, maps, protocol, found, mean, seed)
    stream, buffer = iter(shots), images.new_empty(batch_size, *images.shape[1:])
    while batch := list(islice(stream, batch_size)):
        for shot, place in zip(batch, buffer, strict=False):
            shot.draw(place)
        which = torch.tensor([shot.image for shot in batch], device=images.device)
        values = score(buffer[: len(batch)], which).float().cpu()
        for shot, value in zip(batch, values, strict=True):
            for row, column in shot.places:
                row[column] = value
    for row, source in shots.same:
        row.copy_(source)
    return found


def area_under_curve(curve: Tensor, shares: Tensor | None = None) -> Tensor:
    """(B,points) scores at `shares` (points,), 0, 1/n ... 1 unless given -> (B,) trapezoid area, not divided by the span.

    >>> area_under_curve(torch.tensor([[1.0, 0.5, 0.0]])).tolist()
    [0.5]
    """
    at = torch.linspace(0, 1, curve.shape[1], dtype=torch.float64) if shares is None else shares
    return torch.trapezoid(curve.double(), at.to(curve.device), dim=1).float()


LEAST_DIFFERENCE = 0.01


def rescaled_curve(curve: Tensor, shares: Tensor | None = None, *, clean: int, base: int) -> Tensor:
    """(B,n+1) rescaled so that the clean end is 1 and the baseline end 0; NaN where they differ by less than 0.01.

    NaN as well where `shares` say that the curve stops before its end.
    """
    low, high = curve[:, base, None], curve[:, clean, None]
    span = high - low
    defined = span.abs() >= LEAST_DIFFERENCE
    if shares is not None and shares[-1] < 1:
        defined = torch.zeros_like(defined)
    return torch.where(defined, (curve - low) / span, torch.full_like(curve, torch.nan))
