"""How tokens lie on the image: one sequence on one grid, or the windows of a block."""

from dataclasses import dataclass, field

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
