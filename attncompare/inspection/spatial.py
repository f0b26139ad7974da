"""Whether outputs lie on the image, found by value: where a stripe of a noise image changes, they must change most."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from attncompare.inspection.layout import Layout, TokenLayout, find_layout, token_grid
from attncompare.inspection.trace import BATCH, Call, Network, Trace, first_input, version_of
from attncompare.state import disable_mha_fastpath, preserve_state

MOST_ADDED = 64  # prefix tokens before a grid
STRIPES, STEP = 4, 0.05  # a small step: in deep random networks a large one moves everything
CLEARLY, ENOUGH = 1.2, 0.2  # factor over the next stripe; least share of places that answer so
MOST, MANY, HALF = 0.9, 0.7, 0.5  # shares of places that answer to their own stripes
LEAST = 0.3  # no share below it is a measure: chance gives 1 in 16
INTO = "into "  # key of what goes into a module, beside that of what comes out
Grid = tuple[int, int]


def grid_of(call: Call, size: Grid, sequences: Iterable[TokenLayout]) -> Grid | None:
    """The grid on which an output lies."""
    shape, layout = call.output.shape, find_layout(call.output.shape, size, sequences)
    if layout is None or isinstance(layout, TokenLayout):
        return None if layout is None else layout.grid
    return (int(shape[2]), int(shape[3])) if layout == "nchw" else (int(shape[1]), int(shape[2]))


class Changes:
    """How much outputs change, place by place, where a stripe of a noise image changes a little.

    Four horizontal and four vertical stripes. What lies on the image answers most to its own stripes: this tells rows
    from columns, a grid from its mirror image, and a sequence from itself shifted by a token. Maps are judged as they
    come, because all of them together are large; of sequences every token's change is kept.
    """

    def __init__(self, source: Network, seen: Trace, calls: list[Call]) -> None:
        size = source.size
        self.maps = {c.path: find_layout(c.output.shape, size) for c in calls if len(c.output.shape) == 4}
        self.shares: dict[str, float | None] = {}
        self.astray: set[str] = set()
        self.tokens: dict[str, Tensor] = {}  # (8,N)
        self._latest: tuple[Tensor, int, Tensor] | None = None
        fed = {c.path for c in seen.calls if c.fed is not None and len(c.fed.shape) == 3}
        given = {c.path for c in calls if len(c.output.shape) == 3}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(preserve_state(source.model))
            stack.enter_context(disable_mha_fastpath())
            for path in dict.fromkeys((*fed, *given, *self.maps)):
                module = source.model.get_submodule(path)
                if path in fed:
                    stack.callback(module.register_forward_pre_hook(self._listener(path), with_kwargs=True).remove)
                if path in given or path in self.maps:
                    stack.callback(module.register_forward_hook(self._keeper(path)).remove)
            source.forward(_striped(size).to(seen.images.device))
        self._latest = None

    def _keeper(self, path: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, args: object, output: object) -> None:
            self._keep(path, output[0] if isinstance(output, tuple) else output)

        return keep

    def _listener(self, path: str) -> Callable[[nn.Module, tuple[object, ...], Mapping[str, object]], None]:
        def listen(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object]) -> None:
            self._keep(INTO + path, first_input(args, options))

        return listen

    def _keep(self, key: str, seen: object) -> None:
        if not isinstance(seen, Tensor) or not seen.is_floating_point() or len(seen) != 1 + 2 * STRIPES:
            return
        layout = self.maps.get(key)
        if seen.ndim == 4 and layout is not None:
            plain, other = (_change(seen, axis) for axis in ((1, -1) if layout == "nchw" else (-1, 1)))
            self.shares[key] = _in_place(plain)
            if _is_turned(plain, other, self.shares[key]):
                self.astray.add(key)
        elif seen.ndim == 3 and layout is None:
            self.tokens[key] = self._of_tokens(seen)

    def _of_tokens(self, seen: Tensor) -> Tensor:
        """(8,N); what one module returns and the next takes is one tensor, looked at once."""
        if self._latest is None or self._latest[0] is not seen or self._latest[1] != version_of(seen):
            self._latest = seen, version_of(seen), _change(seen, -1)
        return self._latest[2]

    def in_place(self, path: str, layout: Layout) -> float | None:
        """The share of places that answer most to the stripes they lie in, if the output has that layout."""
        if not isinstance(layout, TokenLayout):
            return self.shares.get(path)
        change = self.tokens.get(path)
        return None if change is None or change.shape[1] != layout.length else _in_place(layout.to_grid(change))


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


def _change(seen: Tensor, axis: int) -> Tensor:
    """(8,...) the mean change over the axis of channels, by each stripe."""
    return torch.stack([(other - seen[0]).abs().mean(axis if axis < 0 else axis - 1).float() for other in seen[1:]])


def _is_turned(plain: Tensor, other: Tensor, share: float | None) -> bool:
    """Whether a map lies on the image mirrored or transposed, or with its channels on another axis."""
    if share is None or share >= HALF or min(plain.shape[1:]) < STRIPES:  # too coarse to tell
        return False
    turned = [
        plain.flip(1),
        plain.flip(2),
        plain.flip(1, 2),
        plain.transpose(1, 2),
        plain.transpose(1, 2).flip(1, 2),
    ]
    return max((_in_place(x) or 0.0) for x in (*turned, other)) >= MANY


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


def find_sequences(changes: Changes, seen: Trace, calls: list[Call], size: Grid) -> list[TokenLayout]:
    """How sequences of tokens lie on the image, row by row behind a few prefix tokens.

    The grid is the one with the image's aspect ratio, or that of a convolution or shorter sequence when tokens were
    added. It is checked by value: the first sequence of that length, going into a module or coming out of one, whose
    tokens answer clearly must answer nearly all to their own place of the image, and most of the others mostly.
    """
    lengths: dict[str, int] = {}
    for call in seen.calls:
        fed = call.fed
        if fed is not None and len(fed.shape) == 3 and fed.shape[0] == BATCH:
            lengths[INTO + call.path] = int(fed.shape[1])
        if len(call.output.shape) == 3 and any(call is one for one in calls):
            lengths[call.path] = int(call.output.shape[1])
    maps = [c for c in calls if len(c.output.shape) == 4]
    spatial = [grid_of(c, size, ()) for c in maps]
    grids = [grid for grid in dict.fromkeys([*spatial, *(token_grid(n, size) for n in lengths.values())]) if grid]
    shares: dict[TokenLayout, list[float]] = {}
    for key, length in lengths.items():
        for layout in _possible(length, size, grids):
            share = changes.in_place(key, layout)
            if share is not None:
                shares.setdefault(layout, []).append(share)
    # Strided convolutions see a little to one side: the share that their own output reaches is the measure.
    convolved: dict[Grid | None, float] = {}
    for call, grid in zip(maps, spatial, strict=True):
        share = changes.in_place(call.path, "nchw")
        convolved[grid] = max(share or 0.0, convolved.get(grid, 0.0))
    right = []
    for layout, found in shares.items():
        best = max(convolved.get(layout.grid, 0.0), LEAST) if layout.grid in convolved else 1.0
        if found[0] >= MOST * best and sorted(found)[len(found) // 2] >= MANY * best:
            right.append(layout)
    return [layout for layout in right if sum(other.length == layout.length for other in right) == 1]


def _possible(tokens: int, size: Grid, grids: list[Grid]) -> list[TokenLayout]:
    """The layouts that a sequence of that length may have."""
    whole = token_grid(tokens, size)
    if whole is not None:
        return [TokenLayout(0, whole)]
    return [TokenLayout(tokens - h * w, (h, w)) for h, w in grids if 0 < tokens - h * w <= MOST_ADDED]
