"""How tokens lie on the image: one sequence on one grid, or the windows of a block.

A tensor "lies on the image" if it is laid out like the image: each of its positions answers to one place of the image, row
by row, so that a value per position can be shown as a map.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from attncompare.errors import CaptureError


@dataclass(frozen=True)
class TokenLayout:
    """How a sequence of N tokens lies on the image: `prefix` tokens first, then an h x w grid row by row.

    class_token: the row that the score is read from; a tuple when several are averaged (distilled models); None when
    the mean over the patch tokens is. length: N = prefix + h * w.
    """

    prefix: int
    grid: tuple[int, int]
    class_token: int | tuple[int, ...] | None = None
    length: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", self.prefix + self.grid[0] * self.grid[1])

    def rows(self) -> list[int]:
        """The query rows that the score is read from."""
        if self.class_token is None:
            return list(range(self.prefix, self.length))
        return list(self.class_token) if isinstance(self.class_token, tuple) else [self.class_token]

    def to_grid(self, x: Tensor) -> Tensor:
        """(B,N) -> (B,h,w), or (B,N,C) -> (B,C,h,w): drop the prefix tokens and lay the rest on the grid.

        >>> import torch
        >>> TokenLayout(1, (2, 3)).to_grid(torch.arange(7)[None]).tolist()
        [[[1, 2, 3], [4, 5, 6]]]
        """
        if x.shape[1] != self.length:
            raise CaptureError(f"{x.shape[1]} tokens found, {self.prefix} + {self.grid[0]} x {self.grid[1]} expected")
        patches = x[:, self.prefix :]
        if x.ndim == 2:
            return patches.reshape(-1, *self.grid)
        return patches.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)

    def readout(self, flow: Tensor) -> Tensor:
        """(B,N,N) query x key -> (B,h,w): the row(s) that the score is read from, on the patch keys."""
        return self.to_grid(flow[:, self.rows()].mean(dim=1))


Layout = Literal["nchw", "nhwc"] | TokenLayout


def _on_image(h: int, w: int, size: tuple[int, int]) -> bool:
    """Whether a grid has the image's aspect ratio, up to one cell of rounding."""
    return 1 < h <= size[0] and 1 < w <= size[1] and abs(h * size[1] - w * size[0]) < max(size)


def token_grid(length: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The one grid of that many cells with the image's aspect ratio; None where there is none, or a choice.

    >>> token_grid(3136, (224, 224)), token_grid(197, (224, 224))
    ((56, 56), None)
    """
    sides = [(h, length // h) for h in range(2, length // 2 + 1) if length % h == 0]
    fitting = [grid for grid in sides if _on_image(*grid, size)]
    return fitting[0] if len(fitting) == 1 else None


def find_layout(shape: torch.Size, size: tuple[int, int], token_layouts: Iterable[TokenLayout] = ()) -> Layout | None:
    """How a module's output lies on an image of that size, or None when it does not.

    A channel axis is told from the spatial axes by the image's aspect ratio, a sequence of tokens by its length.

    >>> find_layout(torch.Size([1, 7, 7, 768]), (224, 224))
    'nhwc'
    """
    if len(shape) == 3:
        return next((layout for layout in token_layouts if layout.length == shape[1]), None)
    if len(shape) == 4 and _on_image(shape[2], shape[3], size):
        return "nchw"
    if len(shape) == 4 and _on_image(shape[1], shape[2], size):
        return "nhwc"
    return None


def split_features(x: Tensor, layout: Layout) -> Tensor:
    """A layer's output -> its features (B,C,h,w)."""
    if isinstance(layout, TokenLayout):
        return layout.to_grid(x)
    return x if layout == "nchw" else x.permute(0, 3, 1, 2)


def join_features(features: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """Features (B,C,h,w) -> an output as `x` is, prefix tokens taken from `x`."""
    if isinstance(layout, TokenLayout):
        return torch.cat([x[:, : layout.prefix], features.flatten(2).transpose(1, 2)], dim=1)
    return features.clone() if layout == "nchw" else features.permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class WindowGeometry:
    """Where the tokens of every window lie: W windows of q queries and k keys.

    keys: (W,k) int64 position y * w + x on `grid` (h, w), -1 for padding. queries: (W,q) likewise on `query_grid`, which
    differs from `grid` where a block reduces its resolution.
    """

    grid: tuple[int, int]
    query_grid: tuple[int, int]
    keys: Tensor
    queries: Tensor


@dataclass(frozen=True)
class WindowAttention:
    """Attention inside windows: values (B,W,heads,q,k) after softmax, and where its queries and keys lie."""

    values: Tensor
    geometry: WindowGeometry

    def weights(self, head: int | None = None) -> Tensor:
        """(B,W,q,k) of one head or the mean over heads; padding is 0 and every row of a real query sums to 1."""
        geometry = self.geometry
        values = self.values.mean(dim=2) if head is None else torch.select(self.values, 2, head)
        real = (geometry.queries >= 0)[:, :, None] & (geometry.keys >= 0)[:, None, :]
        values = values * real.to(values)
        return values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)

    def scatter(self, rows: Tensor) -> Tensor:
        """(B,W,k) one value per key -> (B,h,w), summed over the windows that a position lies in."""
        h, w = self.geometry.grid
        keys = self.geometry.keys.to(rows.device).flatten()
        flat = rows.new_zeros(len(rows), h * w + 1)  # the last place takes the padding
        flat.index_add_(1, torch.where(keys < 0, h * w, keys), rows.flatten(1))
        return flat[:, :-1].reshape(-1, h, w)

    def gather(self, flow: Tensor) -> Tensor:
        """(B,h,w) on the query grid -> (B,W,q), 0 for padding."""
        queries = self.geometry.queries.to(flow.device)
        return flow.flatten(1)[:, queries.clamp_min(0)] * (queries >= 0).to(flow)
