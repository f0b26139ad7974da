"""Whether outputs lie on the image, found by value: where a stripe of a noise image changes, they must change most."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attncompare.inspection.calls import BATCH, Arguments, Call
from attncompare.inspection.layout import TokenLayout, find_layout, token_grid
from attncompare.inspection.trace import Trace, Watcher, version_of

MOST_ADDED = 64  # prefix tokens before a grid
STRIPES, STEP = 4, 0.05  # a small step: in deep random networks a large one moves everything
CLEARLY, ENOUGH = 1.2, 0.2  # factor over the next stripe; least share of places that answer so
MOST, MANY, HALF = 0.9, 0.7, 0.5  # shares of places that answer to their own stripes
LEAST = 0.3  # no share below it is a measure: chance gives 1 in 16
INTO = "into "  # key of what goes into a module, beside that of what comes out
Grid = tuple[int, int]


def grid_of(call: Call, size: Grid, token_layouts: Iterable[TokenLayout] = ()) -> Grid:
    """The grid of an output that lies on the image."""
    shape, layout = call.output.shape, find_layout(call.output.shape, size, token_layouts)
    assert layout is not None
    if isinstance(layout, TokenLayout):
        return layout.grid
    return (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])


class Changes(Watcher):
    """How much outputs change, place by place, where a stripe of a noise image changes a little.

    Four horizontal and four vertical stripes. What lies on the image answers most to its own stripes: this tells rows
    from columns, a grid from its mirror image, and a sequence from itself shifted by a token. Maps are judged as they
    come, because all of them together are large; of sequences every token's change is kept.

    candidates: the calls whose outputs are looked at. shares: path of a map -> the share of its places that answer most
    to the stripes they lie in. astray: the maps that do not lie on the image. tokens: path of a sequence -> (8,N).
    """

    def __init__(self, trace: Trace, candidates: list[Call]) -> None:
        self.trace, self.candidates = trace, candidates
        self.shares: dict[str, float | None] = {}
        self.astray: set[str] = set()
        self.tokens: dict[str, Tensor] = {}
        self._outputs = {c.path for c in candidates}
        self._inputs = {c.path for c in trace.calls if c.input is not None and len(c.input.shape) == 3}
        self._latest: tuple[Tensor, int, Tensor] | None = None
        with self.watching(trace.network.module, graph=False):
            trace.network.forward(_striped(trace.network.size).to(trace.images.device))
        self._latest = None

    def before(self, path: str, module: nn.Module, arguments: Arguments) -> None:
        """Look at a sequence that goes in."""
        x = arguments.first
        if path in self._inputs and x is not None and x.ndim == 3 and _is_striped(x):
            self.tokens[INTO + path] = self._of_tokens(x)

    def after(self, path: str, module: nn.Module, arguments: Arguments, output: object) -> None:
        """Look at a map or sequence that comes out."""
        x = output[0] if isinstance(output, tuple) else output
        if path not in self._outputs or not isinstance(x, Tensor) or not _is_striped(x):
            return
        if x.ndim == 3:
            self.tokens[path] = self._of_tokens(x)
        elif (layout := find_layout(x.shape, self.trace.network.size)) is not None:
            change, of_other_axis = (_change(x, axis) for axis in ((1, -1) if layout == "nchw" else (-1, 1)))
            self.shares[path] = _in_place(change)
            if _is_turned(change, of_other_axis, self.shares[path]):
                self.astray.add(path)

    def _of_tokens(self, x: Tensor) -> Tensor:
        """(8,N); computed once for a tensor that one module returns and the next takes."""
        if self._latest is None or self._latest[0] is not x or self._latest[1] != version_of(x):
            self._latest = x, version_of(x), _change(x, -1)
        return self._latest[2]

    def in_place(self, key: str, layout: TokenLayout) -> float | None:
        """The share of tokens that answer most to the stripes they lie in, if the sequence has that layout."""
        change = self.tokens.get(key)
        return None if change is None or change.shape[1] != layout.length else _in_place(layout.to_grid(change))


def _is_striped(x: Tensor) -> bool:
    """Whether it is a batch with one row for each image of `_striped`."""
    return x.is_floating_point() and len(x) == 1 + 2 * STRIPES


def _striped(size: Grid) -> Tensor:
    """(9,3,H,W) a noise image, and eight times the same with a little other noise in one stripe."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, *size, generator=generator)
    other = (image + STEP * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    images = image.repeat(1 + 2 * STRIPES, 1, 1, 1)
    for stripe in range(STRIPES):
        rows, columns = (slice(side * stripe // STRIPES, side * (stripe + 1) // STRIPES) for side in size)
        images[1 + stripe, :, rows] = other[:, rows]
        images[1 + STRIPES + stripe, :, :, columns] = other[:, :, columns]
    return images


def _change(x: Tensor, axis: int) -> Tensor:
    """(8,...) the mean change over the axis of channels, by each stripe."""
    return torch.stack([(other - x[0]).abs().mean(axis if axis < 0 else axis - 1).float() for other in x[1:]])


def _is_turned(change: Tensor, of_other_axis: Tensor, share: float | None) -> bool:
    """Whether a map lies on the image mirrored or transposed, or with its channels on another axis."""
    if share is None or share >= HALF or min(change.shape[1:]) < STRIPES:  # too coarse to tell
        return False
    transposed = change.transpose(1, 2)
    turned = [change.flip(1), change.flip(2), change.flip(1, 2), transposed, transposed.flip(1, 2)]
    return max((_in_place(x) or 0.0) for x in (*turned, of_other_axis)) >= MANY


def _in_place(change: Tensor) -> float | None:
    """(8,h,w) changes by four horizontal and four vertical stripes: the share of places that answer most to their own.

    Counted are places that answer clearly to one stripe of each kind and that no border between stripes runs through;
    None where they are too few to tell, as in the depth of a random network.
    """
    right = torch.ones(change.shape[1:], dtype=torch.bool)
    known = right.clone()
    for part, axis in ((change[:STRIPES], 0), (change[STRIPES:], 1)):
        cells = part.shape[1 + axis]
        if cells < STRIPES:  # too coarse for a quarter: halves
            part = part.reshape(2, STRIPES // 2, *part.shape[1:]).amax(1)
        first, last = torch.arange(cells) * len(part) // cells, ((torch.arange(cells) + 1) * len(part) - 1) // cells
        shape = (-1, 1) if axis == 0 else (1, -1)
        largest, second = part.cpu().topk(2, dim=0).values
        known &= (first == last).reshape(shape) & (largest > CLEARLY * second)
        right &= part.argmax(dim=0).cpu() == first.reshape(shape)
    return float(right[known].float().mean()) if float(known.float().mean()) >= ENOUGH else None


def find_token_layouts(changes: Changes) -> list[TokenLayout]:
    """How sequences of tokens lie on the image, row by row behind a few prefix tokens.

    The grid is the one with the image's aspect ratio, or that of a convolution or shorter sequence when tokens were
    added. It is checked by value: the first sequence of that length, going into a module or coming out of one, whose
    tokens answer clearly must answer nearly all to their own place of the image, and most of the others mostly.
    """
    size = changes.trace.network.size
    maps = {c.path: grid_of(c, size) for c in changes.candidates if len(c.output.shape) == 4}
    lengths = _lengths(changes)
    grids = dict.fromkeys([*maps.values(), *(token_grid(length, size) for length in lengths.values())])
    shares: dict[TokenLayout, list[float]] = {}
    for key, length in lengths.items():
        for layout in _possible(length, size, [grid for grid in grids if grid]):
            share = changes.in_place(key, layout)
            if share is not None:
                shares.setdefault(layout, []).append(share)
    # Strided convolutions see a little to one side: the share that their own output reaches is the measure.
    convolved: dict[Grid, float] = {}
    for path, grid in maps.items():
        convolved[grid] = max(changes.shares.get(path) or 0.0, convolved.get(grid, 0.0))
    token_layouts = []
    for layout, measured in shares.items():
        best = max(convolved[layout.grid], LEAST) if layout.grid in convolved else 1.0
        if measured[0] >= MOST * best and sorted(measured)[len(measured) // 2] >= MANY * best:
            token_layouts.append(layout)
    by_length = Counter(layout.length for layout in token_layouts)
    return [layout for layout in token_layouts if by_length[layout.length] == 1]


def _lengths(changes: Changes) -> dict[str, int]:
    """The lengths of all sequences, going into modules and coming out of candidates, by their key in `Changes`."""
    paths = {call.path for call in changes.candidates}
    lengths: dict[str, int] = {}
    for call in changes.trace.calls:
        if call.input is not None and len(call.input.shape) == 3 and call.input.shape[0] == BATCH:
            lengths[INTO + call.path] = int(call.input.shape[1])
        if call.path in paths and len(call.output.shape) == 3:
            lengths[call.path] = int(call.output.shape[1])
    return lengths


def _possible(tokens: int, size: Grid, grids: list[Grid]) -> list[TokenLayout]:
    """The layouts that a sequence of that length may have."""
    whole = token_grid(tokens, size)
    if whole is not None:
        return [TokenLayout(0, whole)]
    return [TokenLayout(tokens - h * w, (h, w)) for h, w in grids if 0 < tokens - h * w <= MOST_ADDED]
