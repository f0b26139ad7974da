"""Linear imputation: removed pixels become the weighted mean of their neighbours, for a whole batch at once.

Rong et al., arXiv:2202.00449, section 4.2: every removed pixel p satisfies sum_q w_pq (x_p - x_q) = 0 over its neighbours q
inside the image, w = 1/6 beside and 1/12 across corners. Instead of a sparse direct solve for each image, the systems of a
batch are solved together on their device: conjugate gradients, preconditioned by one multigrid cycle, from a first guess
that is filled in from coarse to fine.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4
"""The solution is accepted when a step changes no pixel by more; the error is then a fraction of it."""
MOST_STEPS = 60
COARSEST = 14
"""A grid whose shorter side is at most this is solved directly."""


@dataclass(frozen=True)
class Grid:
    """One resolution of the systems, with room to work in, so that no step allocates.

    sought: (n,1,h,w) 1 where a value is sought, else 0. degree: (1,1,h,w) 12 times the weights of the neighbours inside.
    sweep, spread: (n,1,h,w) 1 / degree, and 1 / the window's sum inside, where a value is sought, else 0.
    across, rest: (n,C,h,w) scratch.
    """

    sought: Tensor
    degree: Tensor
    sweep: Tensor
    spread: Tensor
    across: Tensor
    rest: Tensor

    @staticmethod
    def of(sought: Tensor, inside: Tensor, channels: int) -> "Grid":
        """inside: (1,1,h,w) 1 for pixels of the image, 0 for what was added to make the sides divisible."""
        degree, sums = torch.empty_like(inside), torch.empty_like(inside)
        _neighbours(inside, sums, degree)
        _sums_of_nine(inside, sums.clone(), sums)
        degree.clamp_(min=1)
        rooms = [sought.new_empty(len(sought), channels, *sought.shape[2:]) for _ in range(2)]
        return Grid(sought, degree, sought / degree, sought / sums.clamp(min=1), *rooms)

    def residual(self, x: Tensor, right: Tensor) -> Tensor:
        """Right side less matrix times x, valid where a value is sought; lives in `rest` until the next call."""
        _neighbours(x, self.across, self.rest)
        torch.mul(x, self.degree, out=self.across)
        return self.rest.sub_(self.across).add_(right)

    def finer(self, coarse: Tensor) -> Tensor:
        """(n,C,h/2,w/2) -> (n,C,h,w) bilinear once times `spread`; lives in `rest`: each cell's value, then the sums."""
        n, channels, high, wide = coarse.shape
        cells = self.across.view(n, channels, high, 2, wide, 2)
        cells.copy_(coarse[:, :, :, None, :, None].expand_as(cells))
        filled = self.across.clone()
        _sums_of_nine(filled, self.across, self.rest)
        return self.rest


def _sums_of_nine(x: Tensor, across: Tensor, out: Tensor) -> None:
    """Give x under the window [1, 2, 1] x [1, 2, 1]; what lies outside counts 0."""
    torch.mul(x, 2, out=across)
    across[..., 1:] += x[..., :-1]
    across[..., :-1] += x[..., 1:]
    torch.mul(across, 2, out=out)
    out[..., 1:, :] += across[..., :-1, :]
    out[..., :-1, :] += across[..., 1:, :]


def _neighbours(x: Tensor, across: Tensor, out: Tensor) -> None:
    """Give sum_q 12 w_q x_q over the 8 neighbours.

    12 w is the window less its centre: whole numbers, so that a constant is no residual to the last bit.
    """
    _sums_of_nine(x, across, out)
    out.sub_(x, alpha=4)


def _sum_of_four(x: Tensor) -> Tensor:
    rows = x[..., ::2, :] + x[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


@dataclass(frozen=True)
class Pyramid:
    """Ever coarser systems, and the inverse (n,hw,hw) of the coarsest one."""

    grids: tuple[Grid, ...]
    inverse: Tensor

    @staticmethod
    def of(sought: Tensor, inside: Tensor, channels: int) -> "Pyramid":
        """A cell of four is sought where all its pixels inside the image are."""
        grids = [Grid.of(sought, inside, channels)]
        while min(sought.shape[2:]) > COARSEST and all(side % 2 == 0 for side in sought.shape[2:]):
            known = _sum_of_four(inside * (1 - sought)) > 0
            inside = (_sum_of_four(inside) > 0).to(sought)
            sought = inside * ~known
            grids.append(Grid.of(sought, inside, channels))
        return Pyramid(tuple(grids), _inverse(grids[-1]))

    def cycle(self, right: Tensor, level: int = 0) -> Tensor:
        """One V-cycle from zero, one sweep before and one after the coarser grid: an approximate solution."""
        grid = self.grids[level]
        if level == len(self.grids) - 1:
            return (self.inverse @ right.flatten(2).mT).mT.reshape(right.shape)
        x = grid.sweep * right
        coarser = self.grids[level + 1]
        left = _sum_of_four(grid.residual(x, right).mul_(grid.sought)).mul_(coarser.sought)
        x.addcmul_(grid.spread, grid.finer(self.cycle(left, level + 1)))
        return x.addcmul_(grid.sweep, grid.residual(x, right))


def _inverse(grid: Grid) -> Tensor:
    """(n,hw,hw) the inverse of a small system, 0 where nothing is sought."""
    count = grid.sought[0].numel()
    basis = torch.eye(count, dtype=grid.sought.dtype, device=grid.sought.device).reshape(
        1, count, *grid.sought.shape[2:]
    )
    sums = torch.empty_like(basis)
    _neighbours(basis, torch.empty_like(basis), sums)
    matrix = torch.diag(grid.degree.flatten()) - sums.reshape(count, count)
    sought = grid.sought.flatten(1)
    both = sought[:, :, None] * sought[:, None, :]
    lower = torch.linalg.cholesky(both * matrix + torch.diag_embed(1 - sought))
    inverse: Tensor = torch.cholesky_inverse(lower)
    return inverse * both


def _guess(values: Tensor, weight: Tensor) -> Tensor:
    """Values where they are known; elsewhere the mean of the cell of a coarser grid. weight: (n,1,h,w) of what is known."""
    if min(values.shape[2:]) <= COARSEST or any(side % 2 for side in values.shape[2:]):
        mean = (values * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True)
        return torch.where(weight > 0, values, mean)
    total = _sum_of_four(weight)
    means = _sum_of_four(values * weight) / total.clamp(min=1)
    filled = F.interpolate(_guess(means, total), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(weight > 0, values, filled)


def linear_fill(images: Tensor, removed: Tensor) -> Tensor:
    """(n,C,H,W) with the removed pixels (n,H,W) bool replaced; no noise yet. At least one pixel of an image must remain.

    Raises ArithmeticError if the solution does not settle, which no mask was seen to do.
    """
    height, width = images.shape[2:]
    multiple = 2 ** max(0, ((min(height, width) - 1) // COARSEST).bit_length())
    padding = (0, -width % multiple, 0, -height % multiple)
    inside = F.pad(images.new_ones(1, 1, height, width), padding)
    sought = F.pad(removed.to(images)[:, None], padding)
    known = F.pad(images, padding) * (1 - sought)
    x = _guess(known, inside * (1 - sought)) * inside
    # The first residual in float64: of values near 1 its rounding, times the condition of the system, would show.
    pyramid = Pyramid.of(sought, inside, images.shape[1])
    exact, sums = x.double(), torch.empty_like(x, dtype=torch.float64)
    _neighbours(exact, torch.empty_like(sums), sums)
    _settle(pyramid, x, sums.sub_(exact * pyramid.grids[0].degree).mul_(sought).to(x))
    return x[..., :height, :width]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(n,C,1,1) the sum of products per image and channel, without a tensor of products."""
    products: Tensor = torch.linalg.vecdot(a.flatten(2), b.flatten(2))
    return products[..., None, None]


def _settle(pyramid: Pyramid, x: Tensor, left: Tensor) -> None:
    """Flexible conjugate gradients on the residual `left`, until x changes by no more than TOLERANCE."""
    fine, zero = pyramid.grids[0], torch.zeros_like(x)
    better = pyramid.cycle(left)
    step, gain = better.clone(), _dot(left, better)
    for _ in range(MOST_STEPS):
        image = fine.residual(step, zero).mul_(fine.sought).clone()  # minus the matrix times the step
        length = torch.where(gain > 0, -gain / _dot(step, image), 0)
        x.addcmul_(length, step)
        if float((length * step.flatten(2).norm(float("inf"), dim=2)[..., None, None]).abs().max()) <= TOLERANCE:
            return
        left.addcmul_(length, image)
        better = pyramid.cycle(left)
        turn = torch.where(gain > 0, length * _dot(better, image) / gain, 0)
        step = step.mul_(turn).add_(better)
        gain = _dot(left, step)
    raise ArithmeticError("linear imputation did not settle")
