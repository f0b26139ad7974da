"""Linear imputation: removed pixels become the weighted mean of their neighbors, for a whole batch at once.

Rong et al., arXiv:2202.00449, section 4.2: every removed pixel p satisfies sum_q w_pq (x_p - x_q) = 0 over its neighbors q
inside the image, w = 1/6 beside and 1/12 across corners. Instead of a sparse direct solve for each image, the systems of a
batch are solved together on their device: conjugate gradients, preconditioned by one multigrid cycle (Trottenberg, Oosterlee
and Schueller, Multigrid, 2001), from a first guess that is filled in from coarse to fine.

12 w is the window [1, 2, 1] x [1, 2, 1] less its center, and remains so on coarser grids. There a cell of two by two is
sought where any of its pixels is, and its tie to known values is the sum of theirs: a constant stays as hard to move.

Memory, and views of it, are made once and used again: new pages, and views of small grids, cost more than the arithmetic.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4
FASTEST = 0.2
"""The error left is estimated from the last step, whose successors are taken to shrink by no better a factor than this."""
MOST_STEPS = 60
COARSEST = 64
"""A grid of at most so many cells is solved directly."""
REVISITED = 64 * 64
"""From a grid of at most so many cells on, the coarser ones are visited twice in a cycle: there that is nearly free."""
AT_ONCE_ON_CPU = 3
"""So many images stay in its caches; a GPU takes all of them."""
FEW_THREADS = 4
"""Up to so many threads are slower than one, in operations of 0.1 ms: two took 1.6 x one's time (not measured above)."""

Sums = tuple[tuple[Tensor, Tensor, int, Tensor], ...]
"""To be made in turn: the first and so many times the second into the third."""


def _add(sums: Sums) -> None:
    for one, other, times, out in sums:
        torch.add(one, other, alpha=times, out=out)


def _inner(x: Tensor) -> Tensor:
    return x[..., 1:-1, 1:-1]


def _part(room: Tensor, *shape: int) -> Tensor:
    return room.view(-1)[: torch.Size(shape).numel()].view(shape)


def _window(x: Tensor, out: Tensor, room: Tensor) -> Sums:
    """Sums under [1, 2, 1] x [1, 2, 1], framed: those of two by two, twice."""
    *batch, high, wide = x.shape
    pairs, fours = _part(room[0], *batch, high, wide - 1), _part(room[1], *batch, high - 1, wide - 1)
    again = _part(room[0], *batch, high - 1, wide - 2)
    return (
        (x[..., 1:], x[..., :-1], 1, pairs),
        (pairs[..., 1:, :], pairs[..., :-1, :], 1, fours),
        (fours[..., 1:], fours[..., :-1], 1, again),
        (again[..., 1:, :], again[..., :-1, :], 1, _inner(out)),
    )


def _cells(x: Tensor, out: Tensor, room: Tensor) -> Sums:
    """Sums of two by two, framed, onto the coarser grid."""
    rows = _part(room[0], *x.shape[:2], out.shape[2] - 2, x.shape[3])
    return (x[..., 1:-1:2, :], x[..., 2::2, :], 1, rows), (rows[..., 1:-1:2], rows[..., 2::2], 1, _inner(out))


def _between(cells: Tensor, out: Tensor, room: Tensor) -> Sums:
    """16 times the values bilinear between the centers of framed cells, onto the finer grid; no frame."""
    rows = _part(room, *cells.shape[:2], out.shape[2], cells.shape[3])
    return (
        (cells[..., :-2, :], cells[..., 1:-1, :], 3, rows[..., ::2, :]),
        (cells[..., 2:, :], cells[..., 1:-1, :], 3, rows[..., 1::2, :]),
        (rows[..., :-2], rows[..., 1:-1], 3, out[..., ::2]),
        (rows[..., 2:], rows[..., 1:-1], 3, out[..., 1::2]),
    )


class Grid:
    """One resolution of the systems of n images, and the coarser ones under it.

    Tensors lie in a frame of zeros one wide, for what is outside the image. known, sought: (n,1,h,w) how many pixels of the
    cell are known; 1 where a value is sought. ties: (n,1,h,w) 12 times the weights to known pixels. diagonal: (n,1,h,w) of
    the matrix, plus 4 for the center of the window. sweep: (n,1,h,w) 1 / diagonal of the matrix, where a value is sought.
    share, spread: (1,1,h,w) what bilinear sums are multiplied by, (n,1,h,w) the same where a value is sought.
    x, right, rest: (n,C,h,w).
    """

    def __init__(self, like: Tensor, high: int, wide: int) -> None:
        n, channels = like.shape[:2]
        self.masks = like.new_zeros(6, n, 1, high + 2, wide + 2)
        self.known, self.sought, self.ties, self.diagonal, self.sweep, self.spread = self.masks
        self.x: Tensor
        self.rest: Tensor
        self.x, self.right, self.rest = like.new_zeros(3, n, channels, high + 2, wide + 2)
        self.room = like.new_empty(2, n, channels, high + 2, wide + 2)
        self.window = _window(self.x, self.rest, self.room)
        self.inner_x, self.inner_spread = _inner(self.x), _inner(self.spread)
        self.coarse: Grid | None = None
        self.visits = 2 if high * wide <= REVISITED else 1
        self.share = like.new_zeros(1, 1, high + 2, wide + 2)
        if high * wide > COARSEST:
            half, across = (high + 1) // 2, (wide + 1) // 2
            self.coarse = Grid(like, half, across)
            fine = _part(self.room[1], n, channels, 2 * half, 2 * across)
            self.down = _cells(self.rest, self.coarse.right, self.room)
            self.up = _between(self.coarse.x, fine, self.room[0])
            self.raised = fine[..., :high, :wide]
            _inner(self.coarse.x).fill_(1)
            _add(self.up)
            _inner(self.share).copy_(1 / self.raised[:1, :1])

    def prepare(self) -> None:
        """Derive the masks of this grid and of the coarser ones from `known`, `sought` and `ties`."""
        _add(_window(self.sought, self.diagonal, self.room))
        self.diagonal.mul_(self.sought).add_(self.ties)
        torch.sub(self.diagonal, 4, out=self.sweep).clamp_(min=1).reciprocal_().mul_(self.sought)
        torch.mul(self.sought, self.share, out=self.spread)
        if self.coarse is None:
            self.inverse = _inverse(self)
            return
        for fine, coarse in zip(self.masks[:3], self.coarse.masks[:3], strict=True):
            _add(_cells(fine, coarse, self.room))
        self.coarse.sought.clamp_(max=1)
        self.coarse.prepare()

    def guess(self) -> Tensor:
        """Set x, from the sums of known values in `right`: their mean in a cell, else between those of the coarser grid."""
        mask = self.rest[:, :1]
        if self.coarse is None:
            mean = self.right.sum((2, 3), keepdim=True) / self.known.sum((2, 3), keepdim=True)
            self.inner_x.copy_(mean.expand_as(self.inner_x))
        else:
            _add(_cells(self.right, self.coarse.right, self.room))
            self.coarse.guess()
            _add(self.up)
            torch.mul(_inner(self.share), self.raised, out=self.inner_x)
        self.x.mul_(torch.eq(self.known, 0, out=mask))
        self.x.addcdiv_(self.right, torch.clamp(self.known, min=1, out=mask))
        return self.x

    def residual(self) -> Tensor:
        """Right side less matrix times x, of no meaning where nothing is sought; lives in `rest` until the next call."""
        _add(self.window)
        self.rest.addcmul_(self.diagonal, self.x, value=-1).add_(self.right)
        return self.rest

    def cycle(self) -> Tensor:
        """Set x to an approximate solution for `right`: a sweep of Jacobi's, the coarser grids, a sweep."""
        if self.coarse is None:
            right = _inner(self.right)
            self.inner_x.copy_((self.inverse @ right.flatten(2).mT).mT.view(right.shape))
            return self.x
        torch.mul(self.right, self.sweep, out=self.x)
        for _ in range(self.visits):
            self.residual().mul_(self.sought)
            _add(self.down)
            self.coarse.cycle()
            _add(self.up)
            self.inner_x.addcmul_(self.inner_spread, self.raised)
        self.x.addcmul_(self.sweep, self.residual())
        return self.x


def _inverse(grid: Grid) -> Tensor:
    """(n,hw,hw) the inverse of a small system, 0 where nothing is sought."""
    high, wide = grid.inner_x.shape[2:]
    basis = F.pad(torch.eye(high * wide).to(grid.x).view(-1, 1, high, wide), (1, 1, 1, 1))
    sums = torch.zeros_like(basis)
    _add(_window(basis, sums, torch.empty_like(torch.stack((basis, basis)))))
    sought, diagonal = (_inner(each).flatten(1) for each in (grid.sought, grid.diagonal))
    both = sought[:, :, None] * sought[:, None, :]
    matrix = torch.diag_embed(diagonal + 1 - sought) - both * _inner(sums).reshape(high * wide, -1)
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return inverse * both


class Solver:
    """Solves the systems of n images (n,C,H,W) of one size at a time."""

    def __init__(self, like: Tensor) -> None:
        self.grid = Grid(like, like.shape[2], like.shape[3])
        self.filled, self.step, self.product = like.new_zeros(3, *self.grid.x.shape)
        self.window = _window(self.step, self.product, self.grid.room)
        self.exact, self.exact_product = self.filled.new_zeros(2, *self.filled.shape, dtype=torch.float64)
        self.exact_window = _window(self.exact, self.exact_product, self.grid.room.double())

    def fill(self, images: Tensor, removed: Tensor) -> Tensor:
        """linear_fill, into memory that the next call writes to."""
        grid = self.grid
        _inner(grid.sought).copy_(removed[:, None])
        torch.sub(1, _inner(grid.sought), out=_inner(grid.known))
        _add(_window(grid.known, grid.ties, grid.room))
        grid.ties.mul_(grid.sought)
        grid.prepare()
        torch.mul(images, _inner(grid.known), out=_inner(grid.right))
        self.filled.copy_(grid.guess())
        # In float64: of values near 1 the rounding, times the condition of the system, would show.
        self.exact.copy_(self.filled)
        _add(self.exact_window)
        torch.sub(self.exact_product, self.exact.mul_(grid.diagonal), out=grid.right)
        self._settle()
        return _inner(self.filled)

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """(n,C,1,1) the sum of products per image and channel."""
        return torch.mul(a, b, out=self.grid.rest).sum((2, 3), keepdim=True)

    def _settle(self) -> None:
        """Flexible conjugate gradients on the residual, the grid's `right`, until `filled` is within half of TOLERANCE."""
        grid, step, product, left = self.grid, self.step, self.product, self.grid.right
        grid.cycle()
        step.copy_(grid.x)
        gain, before = self._dot(left, step), None
        for _ in range(MOST_STEPS):
            _add(self.window)
            product.addcmul_(grid.diagonal, step, value=-1)  # minus the matrix times the step
            length = torch.where(gain > 0, -gain / self._dot(step, product), 0)
            self.filled.addcmul_(length, step)
            change = length.abs() * torch.maximum(step.amax((2, 3), keepdim=True), -step.amin((2, 3), keepdim=True))
            before = 2 * change if before is None else before
            rate = torch.where(change > 0, change / before, 0).clamp(FASTEST, 0.99)
            if float((change * rate / (1 - rate)).max()) <= TOLERANCE / 2:
                return
            before = change
            left.addcmul_(length, product)
            grid.cycle()
            turn = torch.where(gain > 0, length * self._dot(grid.x, product) / gain, 0)
            torch.addcmul(grid.x, step, turn, out=step)
            gain = self._dot(left, step)
        raise ArithmeticError("linear imputation did not settle")


@contextmanager
def _one_thread_for_few() -> Iterator[None]:
    """One thread instead of a few; as before afterward."""
    threads = torch.get_num_threads()
    few = 1 < threads <= FEW_THREADS
    try:
        if few:
            torch.set_num_threads(1)
        yield
    finally:
        if few:
            torch.set_num_threads(threads)


def linear_fill(images: Tensor, removed: Tensor) -> Tensor:
    """(n,C,H,W) with the removed pixels (n,H,W) bool replaced; no noise yet. At least one pixel of an image must remain.

    Within TOLERANCE of the exact solution where an image has 16 rows and columns or more. Raises ArithmeticError if the
    solution does not settle, which was seen of images of a single row only.
    """
    filled, solver = images.new_empty(images.shape), None
    at_once = AT_ONCE_ON_CPU if images.device.type == "cpu" else len(images)
    with _one_thread_for_few():
        for start in range(0, len(images), at_once):
            some, gone = images[start : start + at_once], removed[start : start + at_once]
            if solver is None or len(solver.filled) != len(some):
                solver = Solver(some)
            filled[start : start + at_once] = solver.fill(some, gone)
    return filled
