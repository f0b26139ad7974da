"""Where the tokens of attention windows lie on the image, found by value.

Shifts, padding, partitions and their order differ from library to library. Instead of knowing them, the block is run on
a grid of tokens that take one of two values, by one bit of their position at a time: what its keys and queries turn out
to be then spells out the position of each. A block whose keys mix positions answers with a third value and is refused.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attncompare.inspection.attention_calls import explicit_attention, hearing, kernel
from attncompare.inspection.calls import BATCH, AttentionCall, Call
from attncompare.inspection.layout import TokenLayout, WindowGeometry, find_layout
from attncompare.inspection.structure import WindowBlock
from attncompare.inspection.trace import Trace

MOST_AROUND = 8  # readings of the modules around an attention that are tried
TOLERANCE = 1e-3  # of the distance between the two values
Axes = Literal["bw", "bhw", "bwh"]
ORDERS: dict[Axes, tuple[int, ...]] = {"bw": (0, 2, 1, 3), "bhw": (0, 2, 3, 1, 4), "bwh": (0, 1, 3, 2, 4)}
"""How WindowBlock's axes of keys and queries become (B*W,n,heads,d) or (B,W,n,heads,d)."""
MIXED = (
    "its weights are not between positions, or positions are mixed before it by a convolution or a reduction of keys"
)
FOLDED = "it folds the heads into the batch, so that heads, windows and images cannot be told apart"


def find_windows(trace: Trace, attention: AttentionCall, token_layouts: list[TokenLayout]) -> WindowBlock | str:
    """The geometry of one attention block, or the reason why it has none on the image.

    token_layouts: how sequences of tokens may lie. The model must be frozen and in evaluation mode.
    """
    if len(attention.shape) < 4:
        return FOLDED
    generator = torch.Generator().manual_seed(0)
    reason = f"its {attention.keys} tokens do not lie on the image row by row in any module around it"
    for call, grid, channels_first in islice(_enclosing(trace, attention.path, token_layouts), MOST_AROUND):
        block = _Block(trace, attention, call, grid, channels_first, generator)
        try:
            window_block = block.read()
        except Exception as error:  # any module may be asked to run alone here, and raise anything
            return f"its block {call.path} does not run alone ({type(error).__name__}: {str(error)[:80]})"
        # A tensor (B,W,n,C) that is cut already may look like an image of W x n: every window is then a row of it.
        if window_block is not None and not _is_cut_already(window_block.geometry):
            return window_block
        reason = MIXED
    return reason


def _enclosing(
    trace: Trace, path: str, token_layouts: list[TokenLayout]
) -> Iterator[tuple[Call, tuple[int, int], bool]]:
    """The attention's module and those around it whose first input lies on the image, from the inside out.

    Each with the grid of its input and whether channels come first: both ways where the shape leaves it open.
    """
    inner, size = path, trace.network.size
    while path:
        first = next(c.path for c in trace.attention if c.path == inner or c.path.startswith(path + "."))
        if first != inner:  # what it attends to has been through another attention
            return
        call = trace.call_of(path)
        x = None if call is None else call.input_tensor
        if call is not None and x is not None and x.shape[0] == BATCH:
            layout = find_layout(x.shape, size, token_layouts)
            if isinstance(layout, TokenLayout):
                yield call, layout.grid, False
            if layout == "nchw":
                yield call, (x.shape[2], x.shape[3]), True
            if x.ndim == 4 and find_layout(x.movedim(-1, 1).shape, size) == "nchw":
                yield call, (x.shape[1], x.shape[2]), False
        path = path.rpartition(".")[0]


class _HeardError(Exception):
    """Raised to leave a block as soon as its attention was heard."""


class _BlockRecorder(TorchFunctionMode):
    """Listens inside one block: the last pointwise projections, and then the attention that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[int] = []
        self.projections: list[Tensor] = []
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.probabilities: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running and func is F.linear:
            self.projections.append(result.reshape(-1, result.shape[-1]))
        elif self.running and func in (F.conv2d, torch.conv2d) and tuple(args[1].shape[2:]) == (1, 1):
            self.projections.append(result.movedim(1, -1).reshape(-1, result.shape[1]))
        return result

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


class _Block:
    """A block that can be run alone on tokens of two values.

    around: the module around the attention whose first input lies on the image, on that grid.
    """

    def __init__(
        self,
        trace: Trace,
        attention: AttentionCall,
        around: Call,
        grid: tuple[int, int],
        channels_first: bool,
        generator: torch.Generator,
    ) -> None:
        assert around.input_tensor is not None
        self.network, self.attention, self.around = trace.network, attention, around
        self.grid, self.channels_first, self.input = grid, channels_first, around.input_tensor
        channels = self.input.shape[1 if channels_first else -1]
        self.values = torch.randn(2, channels, generator=generator).to(self.input)

    def run(self, masks: Tensor) -> _BlockRecorder:
        """Run on (B,h*w) masks that choose one of the two values for each position, up to its attention."""
        x = self.values[masks.long().to(self.values.device)]  # (B, h*w, C)
        x = x.movedim(-1, 1) if self.channels_first else x
        recorder = _BlockRecorder()
        path, network = self.attention.path, self.network
        with suppress(_HeardError), recorder, hearing(recorder, network.module, [path], network.attention):
            self.around.rerun(x.reshape(self.input.shape))
        return recorder

    def windows(self, axes: Axes) -> int:
        """W, the number of windows per image."""
        shape = self.attention.shape
        return shape[0] // BATCH if axes == "bw" else shape[2 if axes == "bhw" else 1]

    def rows(self, masks: Tensor, axes: Axes, of_keys: bool) -> Tensor | None:
        """(B, W * n, D) what keys or queries are made of: themselves, or the projections they are read from."""
        recorder = self.run(masks)
        tensor, tokens = (recorder.key, self.attention.keys) if of_keys else (recorder.query, self.attention.queries)
        if tensor is not None and tensor.ndim == len(self.attention.shape):
            rows = tensor.permute(ORDERS[axes]).flatten(-2).flatten(0, -2)
            return rows.reshape(BATCH, -1, rows.shape[-1]) if len(rows) % BATCH == 0 else None
        count = BATCH * self.windows(axes) * tokens
        fitting = [rows for rows in recorder.projections if len(rows) == count]
        return fitting[-1].reshape(BATCH, -1, fitting[-1].shape[-1]) if fitting else None

    @torch.no_grad()
    def read(self) -> WindowBlock | None:
        """Where keys and queries lie, under the one reading of the weights' axes for which that makes sense."""
        for axes in ORDERS:
            fits = (axes == "bw") == (len(self.attention.shape) == 4)
            keys = self.positions(axes, of_keys=True) if fits else None
            queries = None if keys is None else self.positions(axes, of_keys=False)
            outputs = None if queries is None else _on_own_grid(queries, self.grid)
            if keys is not None and outputs is not None:
                return WindowBlock(self.attention.path, WindowGeometry(self.grid, outputs[0], keys, outputs[1]), axes)
        return None

    def positions(self, axes: Axes, of_keys: bool) -> Tensor | None:
        """(W,n) the position behind each key or query, -1 for padding; None where one depends on several positions."""
        count = self.grid[0] * self.grid[1]
        ids = torch.arange(count)
        extremes = self.rows(torch.tensor([[False], [True]]).expand(-1, count), axes, of_keys)
        if extremes is None:
            return None
        low, high = extremes
        distance = (high - low).abs().amax(-1)
        real = distance > TOLERANCE * distance.max()  # the others are padding
        positions = torch.zeros(len(low), dtype=torch.int64, device=low.device)
        for bit in range(0, (count - 1).bit_length(), BATCH):  # a bit for each image of the batch
            bits = torch.arange(bit, bit + BATCH)[:, None]
            rows = self.rows((ids >> bits) % 2 == 1, axes, of_keys)
            if rows is None:
                return None
            is_high, is_low = ((rows - other).abs().amax(-1) <= TOLERANCE * distance for other in (high, low))
            if not bool((is_high | is_low | ~real).all()):
                return None
            positions += (is_high.long() << bits.to(low.device)).sum(0)
        known = positions[real]
        if not len(known) or bool((known >= count).any()):
            return None
        return torch.where(real, positions, -1).cpu().reshape(self.windows(axes), -1)


def _on_own_grid(queries: Tensor, grid: tuple[int, int]) -> tuple[tuple[int, int], Tensor] | None:
    """(grid, positions on it) of queries on every position, or on every position of a coarser grid, once each."""
    real = queries[queries >= 0]
    rows, columns = torch.unique(real // grid[1]), torch.unique(real % grid[1])
    coarse = (len(rows), len(columns))
    if len(real) != coarse[0] * coarse[1] or len(torch.unique(real)) != len(real):
        return None
    y = torch.searchsorted(rows, queries.clamp_min(0) // grid[1])
    x = torch.searchsorted(columns, queries.clamp_min(0) % grid[1])
    return coarse, torch.where(queries < 0, -1, y * coarse[1] + x)


def _is_cut_already(geometry: WindowGeometry) -> bool:
    keys = geometry.keys
    return len(keys) > 1 and torch.equal(keys.flatten(), torch.arange(keys.numel()))


def attends_to_tokens(trace: Trace, attention: AttentionCall) -> bool:
    """Whether the rows and columns of global weights are the tokens that go into the module, in their order.

    Attention between channels has as many rows when there happen to be as many channels per head as tokens. Here one
    token is changed: of the other tokens' scores only those for it may change, whatever is added to them, so their
    logarithms may only shift together where it is left out.
    """
    call, tokens = trace.call_of(attention.path), attention.keys
    x = None if call is None else call.input_tensor
    if call is None or x is None or x.ndim != 3 or x.shape[1] != tokens:
        return False
    block = _Block(trace, attention, call, (1, tokens), False, torch.Generator().manual_seed(0))
    masks = (torch.rand(tokens, generator=torch.Generator().manual_seed(0)) < 0.5).repeat(BATCH, 1)
    changed = tokens // 3  # not the middle, which stays where it is in a mirrored sequence
    masks[1, changed] = ~masks[1, changed]
    with torch.no_grad():
        weights = block.run(masks).probabilities
    if weights is None or weights.shape[0] != BATCH:
        return False
    shift = weights[1].double().log() - weights[0].double().log()  # (heads,N,N)
    others = [token for token in range(tokens) if token != changed]
    mine, rest = shift[:, others][:, :, changed], shift[:, others][:, :, others]
    spread = rest.amax(-1) - rest.amin(-1)
    return bool(spread.max() <= TOLERANCE * (mine - rest.mean(-1)).abs().max())
