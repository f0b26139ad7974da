"""Where the tokens of attention windows lie on the image, found by value.

Shifts, padding, partitions and their order differ from library to library. Instead of knowing them, the block is run on
a grid of tokens that take one of two values, by one bit of their position at a time: what its keys and queries turn out
to be then spells out the position of each. A block whose keys mix positions answers with a third value and is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attncompare.inspection.attention_calls import Recorder, current_block, explicit_attention, kernel
from attncompare.inspection.layout import TokenLayout, WindowGeometry, find_layout
from attncompare.inspection.structure import WindowBlock
from attncompare.inspection.trace import BATCH, AttentionCall, Call, Trace
from attncompare.state import disable_mha_fastpath

MOST_AROUND = 8  # readings of the modules around an attention that are tried
TOLERANCE = 1e-3  # of the distance between the two values
AXES: tuple[Literal["bw", "bhw", "bwh"], ...] = ("bw", "bhw", "bwh")
MIXED = (
    "its weights are not between positions, or positions are mixed before it by a convolution or a reduction of keys"
)
FOLDED = "it folds the heads into the batch, so that heads, windows and images cannot be told apart"


class _HeardError(Exception):
    """Raised to leave a block as soon as its attention was heard."""


class _Ear(TorchFunctionMode):
    """Listens inside one block: the last pointwise projections, and then the attention that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[int] = []
        self.projections: list[Tensor] = []
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.probabilities: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.running and func is F.linear:
            self.projections.append(found.reshape(-1, found.shape[-1]))
        elif self.running and func in (F.conv2d, torch.conv2d) and tuple(args[1].shape[2:]) == (1, 1):
            self.projections.append(found.movedim(1, -1).reshape(-1, found.shape[1]))
        return found

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Fused attention shows its keys and queries."""
        if not self.running:
            return kernel(query, key, value, *args, **kwargs)
        self.query, self.key = query, key
        self.probabilities = explicit_attention(query, key, value, *args, **kwargs)[1]
        raise _HeardError

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Unfused attention does not; its projections stand in for them."""
        if self.running:
            self.probabilities = probabilities
            raise _HeardError
        return probabilities


def _rows(seen: Tensor, axes: str) -> Tensor:
    """Keys or queries (B*W,heads,n,d), (B,heads,W,n,d) or (B,W,heads,n,d) -> (B * W * n, heads * d)."""
    order = {"bw": (0, 2, 1, 3), "bhw": (0, 2, 3, 1, 4), "bwh": (0, 1, 3, 2, 4)}[axes]
    return seen.permute(order).flatten(-2).flatten(0, -2)


@dataclass
class _Block:
    """A block that can be run alone on tokens of two values.

    outer: the module around the attention whose first input lies on the image. shape: its (B,...,C) with the grid.
    """

    model: nn.Module
    attention: AttentionCall
    outer: Call
    grid: tuple[int, int]
    channels_first: bool
    values: Tensor  # (2, C)
    recorder: Recorder

    def run(self, masks: Tensor) -> _Ear:
        """Run on (B,h*w) masks that choose one of the two values for each position, up to its attention."""
        tokens = self.values[masks.long()]  # (B, h*w, C)
        fed = self.outer.given
        assert fed is not None
        x = tokens.movedim(-1, 1).reshape(fed.shape) if self.channels_first else tokens.reshape(fed.shape)
        inputs = tuple(x if value is fed else value for value in self.outer.inputs)
        options = {name: x if value is fed else value for name, value in self.outer.options.items()}
        with ExitStack() as stack:
            ear = _Ear()
            stack.enter_context(current_block(self.model, [self.attention.path], ear.running))
            stack.enter_context(ear)
            stack.enter_context(self.recorder(ear))
            with _stopped():
                self.outer.module(*inputs, **options)
        return ear

    def positions(self, rows_of: Callable[[_Ear], Tensor | None]) -> Tensor | None:
        """(W * n,) the position behind each row, -1 for padding; None where a row depends on several positions."""
        count = self.grid[0] * self.grid[1]
        ids = torch.arange(count)
        masks = [torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)]
        masks += [(ids >> bit) % 2 == 1 for bit in range((count - 1).bit_length())]
        masks += [masks[0]] * (len(masks) % BATCH)
        spelling: _Spelling | None = None
        for start in range(0, len(masks), BATCH):
            rows = rows_of(self.run(torch.stack(masks[start : start + BATCH]).to(self.values.device)))
            if rows is None or len(rows) % BATCH:
                return None
            pair = list(rows.reshape(BATCH, -1, rows.shape[-1]))
            if spelling is None:
                spelling = _Spelling(*pair)
            elif not all(spelling.read(bit) for bit in pair):
                return None
        assert spelling is not None
        return spelling.positions(count)


@contextmanager
def _stopped() -> Iterator[None]:
    try:
        yield
    except _HeardError:
        return


class _Spelling:
    """Positions, read bit by bit from rows (R,D) that must equal what one or the other of the two values gives."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        self.far = (high - low).abs().amax(-1)
        self.real = self.far > TOLERANCE * self.far.max()  # the others are padding
        self.found = torch.zeros(len(low), dtype=torch.int64, device=low.device)
        self.bit = 0

    def read(self, rows: Tensor) -> bool:
        """Take the next bit; False where a row is neither."""
        is_high, is_low = ((rows - other).abs().amax(-1) <= TOLERANCE * self.far for other in (self.high, self.low))
        self.found += is_high.long() << self.bit
        self.bit += 1
        return bool((is_high | is_low | ~self.real).all())

    def positions(self, count: int) -> Tensor | None:
        """(R,) positions below `count`, -1 for padding."""
        known = self.found[self.real]
        if not len(known) or bool((known >= count).any()):
            return None
        return torch.where(self.real, self.found, -1).cpu()


def _enclosing(
    seen: Trace, path: str, size: tuple[int, int], sequences: list[TokenLayout]
) -> Iterator[tuple[Call, tuple[int, int], bool]]:
    """The attention's module and those around it whose first input lies on the image, from the inside out.

    Each with the grid of its input and whether channels come first: both ways where the shape leaves it open.
    """
    inner = path
    while path:
        first = next(c.path for c in seen.attention if c.path == inner or c.path.startswith(path + "."))
        if first != inner:  # what it attends to has been through another attention
            return
        call = seen.call_of(path)
        fed = None if call is None else call.given
        if call is not None and fed is not None and fed.shape[0] == BATCH:
            layout = find_layout(fed.shape, size, sequences)
            if isinstance(layout, TokenLayout):
                yield call, layout.grid, False
            if layout == "nchw":
                yield call, (int(fed.shape[2]), int(fed.shape[3])), True
            if fed.ndim == 4 and find_layout(fed.movedim(-1, 1).shape, size) == "nchw":
                yield call, (int(fed.shape[1]), int(fed.shape[2])), False
        path = path.rpartition(".")[0]


def find_windows(
    seen: Trace, model: nn.Module, attention: AttentionCall, size: tuple[int, int], sequences: list[TokenLayout]
) -> WindowBlock | str:
    """The geometry of one attention block, or the reason why it has none on the image.

    sequences: how sequences of tokens may lie. The model must be frozen and in evaluation mode.
    """
    if len(attention.shape) < 4:
        return FOLDED
    generator = torch.Generator().manual_seed(0)
    reason = f"its {attention.keys} tokens do not lie on the image row by row in any module around it"
    for call, grid, channels_first in islice(_enclosing(seen, attention.path, size, sequences), MOST_AROUND):
        fed = call.given
        assert fed is not None
        values = torch.randn(2, fed.shape[1 if channels_first else -1], generator=generator).to(fed)
        block = _Block(model, attention, call, grid, channels_first, values, seen.recorder)
        try:
            with torch.no_grad(), disable_mha_fastpath():
                found = _geometry(block, attention)
        except Exception as error:  # any module may be asked to run alone here, and raise anything
            return f"its block {call.path} does not run alone ({type(error).__name__}: {str(error)[:80]})"
        # A tensor (B,W,n,C) that is cut already may look like an image of W x n: every window is then a row of it.
        if found is not None and not _is_cut_already(found[0]):
            return WindowBlock(attention.path, *found)
        reason = MIXED
    return reason


def _token_rows(ear: _Ear, attention: AttentionCall, axes: str, of_keys: bool) -> Tensor | None:
    """(B * W * n, D) what a block's keys or queries are made of: themselves, or the projections they are read from."""
    kept, wanted = (ear.key, attention.keys) if of_keys else (ear.query, attention.queries)
    if kept is not None and kept.ndim == len(attention.shape):
        return _rows(kept, axes)
    count = BATCH * _windows(attention, axes) * wanted
    fitting = [found for found in ear.projections if len(found) == count]
    return fitting[-1] if fitting else None


def _windows(attention: AttentionCall, axes: str) -> int:
    """W, the number of windows per image."""
    return attention.shape[0] // BATCH if axes == "bw" else attention.shape[2 if axes == "bhw" else 1]


def attends_to_tokens(seen: Trace, model: nn.Module, attention: AttentionCall) -> bool:
    """Whether the rows and columns of global weights are the tokens that go into the module, in their order.

    Attention between channels has as many rows when there happen to be as many channels per head as tokens. Here one
    token is changed: of the other tokens' scores only those for it may change, whatever is added to them, so their
    logarithms may only shift together where it is left out.
    """
    call = seen.call_of(attention.path)
    fed = None if call is None else call.given
    if call is None or fed is None or fed.ndim != 3 or fed.shape[1] != attention.keys:
        return False
    values = torch.randn(2, fed.shape[-1], generator=torch.Generator().manual_seed(0)).to(fed)
    block = _Block(model, attention, call, (1, attention.keys), False, values, seen.recorder)
    masks = torch.zeros(BATCH, attention.keys, dtype=torch.bool, device=fed.device)
    changed = attention.keys // 2
    masks[1, changed] = True
    with torch.no_grad(), disable_mha_fastpath():
        weights = block.run(masks).probabilities
    if weights is None or weights.shape[0] != BATCH:
        return False
    shift = weights[1].double().log() - weights[0].double().log()  # (heads,N,N)
    others = [token for token in range(attention.keys) if token != changed]
    mine, rest = shift[:, others][:, :, changed], shift[:, others][:, :, others]
    spread = rest.amax(-1) - rest.amin(-1)
    return bool(spread.max() <= TOLERANCE * (mine - rest.mean(-1)).abs().max())


def _geometry(block: _Block, attention: AttentionCall) -> tuple[WindowGeometry, Literal["bw", "bhw", "bwh"]] | None:
    """Positions of keys and queries, under the one reading of the weights' axes for which they make sense."""
    for axes in AXES:
        if (axes == "bw") != (len(attention.shape) == 4):
            continue
        found = []
        for of_keys in (True, False):
            found.append(block.positions(partial(_token_rows, attention=attention, axes=axes, of_keys=of_keys)))
            if found[-1] is None:
                break
        if found[-1] is None:
            continue
        keys, queries = (rows.reshape(_windows(attention, axes), -1) for rows in found if rows is not None)
        outputs = _outputs(queries, block.grid)
        if outputs is not None:
            return WindowGeometry(block.grid, outputs[0], keys, outputs[1]), axes
    return None


def _is_cut_already(geometry: WindowGeometry) -> bool:
    keys = geometry.keys
    return len(keys) > 1 and torch.equal(keys.flatten(), torch.arange(keys.numel()))


def _outputs(queries: Tensor, grid: tuple[int, int]) -> tuple[tuple[int, int], Tensor] | None:
    """(grid, positions on it) of queries on every position, or on every position of a coarser grid, once each."""
    real = queries[queries >= 0]
    rows, columns = torch.unique(real // grid[1]), torch.unique(real % grid[1])
    coarse = (len(rows), len(columns))
    if len(real) != coarse[0] * coarse[1] or len(torch.unique(real)) != len(real):
        return None
    y = torch.searchsorted(rows, queries.clamp_min(0) // grid[1])
    x = torch.searchsorted(columns, queries.clamp_min(0) % grid[1])
    return coarse, torch.where(queries < 0, -1, y * coarse[1] + x)
