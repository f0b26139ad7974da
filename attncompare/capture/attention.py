"""What listens to attention during a pass."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.inspection.attention_calls import attention_rows, explicit_attention, hearing, kernel
from attncompare.inspection.layout import WindowAttention
from attncompare.models.adapter import ModelAdapter

ROW_SUM_TOLERANCE = 1e-4
KERNEL_OPTIONS = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")

FUSE_HEADS: dict[str, Callable[[Tensor, int], Tensor]] = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}
"""Over axis 1 of (B,heads,Nq,Nk)."""

CallListener = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called at each kernel call of a declared block: with its index, and query, key and value (B,heads,N,D)."""


class AttentionRecorder:
    """Keeps what is asked for of every declared attention block.

    full: whole weights (B,heads,Nq,Nk). rows: those that the score is read from. head_fusions: how heads are fused where
    only their sum is needed. listeners: of signals that read the kernel's inputs. Methods that read the class row alone
    never hold (B,heads,N,N).

    Blocks whose only query is a class token or a pooling query come behind the blocks over all tokens; where there are
    some, the score's attention rows are theirs.
    """

    def __init__(self, adapter: ModelAdapter, *, full: bool = False) -> None:
        self.adapter, self.running = adapter, list[int]()
        self.full, self.rows, self.head_fusions = full, False, set[str]()
        self.listeners: list[CallListener] = []
        self.listened: dict[int, Tensor] = {}
        structure = adapter.structure
        self.pooling = {i for i, path in enumerate(structure.attention_blocks) if path in structure.pooling_blocks}
        self.row_blocks = sorted(self.pooling) or list(range(len(structure.attention_blocks)))
        self.blocks: dict[int, Tensor] = {}
        self.fused: dict[str, dict[int, Tensor]] = {}
        self.class_rows: dict[int, Tensor] = {}

    def active(self) -> AbstractContextManager[object]:
        """Listens to the declared blocks inside the `with` statement."""
        return hearing(
            self, self.adapter.module, self.adapter.structure.attention_blocks, self.adapter.source.attention
        )

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Stand in for the fused kernel."""
        if not self.running:
            self._refuse_undeclared(query.shape[-2], key.shape[-2])
            return kernel(query, key, value, *args, **kwargs)  # type: ignore[arg-type]
        options = {**dict(zip(KERNEL_OPTIONS, args, strict=False)), **kwargs}
        if self.listeners:
            self._verify_shape((query.shape[-2], key.shape[-2]))
            self._keep(self.listened, query.new_empty(0))  # a mark, so that a second run of the block is refused
        for listener in self.listeners:
            listener(self.running[-1], query.detach(), key.detach(), value.detach())
        if self.full or (self.head_fusions and not torch.is_grad_enabled()):
            output, probabilities = explicit_attention(query, key, value, **options)  # type: ignore[arg-type]
            self._keep_all(probabilities)
            return output
        if self.head_fusions:  # outside the graph, which would keep every head of every block
            with torch.no_grad():
                self._keep_all(explicit_attention(query, key, value, **options)[1])  # type: ignore[arg-type]
        elif self.rows and self.running[-1] in self.row_blocks:
            self._verify_shape((query.shape[-2], key.shape[-2]))
            taken = {name: value for name, value in options.items() if name != "dropout_p"}
            self._keep_rows(attention_rows(query, key, self._rows(), **taken))  # type: ignore[arg-type]
        return kernel(query, key, value, **options)  # type: ignore[arg-type]

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Hear of an unfused attention; where gradients are wanted the probabilities start the graph or stay in it."""
        if not self.running:
            self._refuse_undeclared(probabilities.shape[-2], probabilities.shape[-1])
            return probabilities
        if self.full and torch.is_grad_enabled() and not probabilities.requires_grad:
            probabilities = probabilities.detach().requires_grad_(True)
        self._keep_all(probabilities)
        return probabilities

    def _rows(self) -> list[int]:
        """The query rows that the score is read from, in the running block."""
        layout = self.adapter.attention_tokens
        assert layout is not None
        return [0] if self.running[-1] in self.pooling else layout.rows()

    def _keep_all(self, probabilities: Tensor) -> None:
        """What is asked for of the (B,heads,Nq,Nk) weights of the running block."""
        block = self.running[-1]
        self._verify(probabilities)
        if self.full:
            self._keep(self.blocks, probabilities)
        seen = probabilities.detach()
        for head_fusion in self.head_fusions:
            fused = self._completed(FUSE_HEADS[head_fusion](seen, 1), 1.0)
            self._keep(self.fused.setdefault(head_fusion, {}), fused)
        if self.rows and block in self.row_blocks:
            self._keep_rows(seen[:, :, self._rows()].mean(dim=2))

    def _keep_rows(self, rows: Tensor) -> None:
        """(B,heads,Nk) on all tokens; a pooling query does not attend to itself."""
        layout = self.adapter.attention_tokens
        assert layout is not None
        self._keep(self.class_rows, nn.functional.pad(rows, (layout.length - rows.shape[-1], 0)))

    def _keep(self, into: dict[int, Tensor], value: Tensor) -> None:
        block = self.running[-1]
        if block in into:
            raise CaptureError(f"attention block {block} ran twice in one pass; one call was declared")
        into[block] = value

    def _completed(self, matrix: Tensor, rest: float) -> Tensor:
        layout = self.adapter.attention_tokens
        assert layout is not None
        return on_all_tokens(matrix, layout.length, rest)

    def _refuse_undeclared(self, queries: int, keys: int) -> None:
        """Attention among all tokens outside the declared blocks would be missing from every map."""
        layout = self.adapter.tokens
        if layout is not None and queries == keys == layout.length:
            declared = len(self.adapter.structure.attention_blocks)
            raise CaptureError(f"{self.adapter.name} attends outside the {declared} attention blocks it declares")

    def _verify_shape(self, found: tuple[int, int]) -> None:
        layout = self.adapter.attention_tokens
        assert layout is not None
        if self.running[-1] in self.pooling:
            right = found in ((1, layout.length), (1, layout.length - 1))
        else:
            side = layout.length if self.adapter.tokens is None else self.adapter.tokens.length
            right = found == (side, side)
        if not right:
            raise CaptureError(f"attention block {self.running[-1]} is {found}, the layout says {layout.length} tokens")

    def _verify(self, probabilities: Tensor) -> None:
        self._verify_shape((probabilities.shape[-2], probabilities.shape[-1]))
        verify_rows(probabilities, self.running[-1])

    def attention(self) -> list[Tensor]:
        """Every block over all tokens, (B,heads,N,N)."""
        return [self._completed(block.detach(), 1.0) for block in self.listed(self.blocks)]

    def gradients(self, found: Iterable[Tensor]) -> list[Tensor]:
        """The gradients of `blocks`, over all tokens: none reaches what a block leaves alone."""
        return [self._completed(gradient, 0.0) for gradient in found]

    def rows_read(self) -> list[Tensor]:
        """(B,heads,N) of every block whose rows the score is read from."""
        return self.listed(self.class_rows, self.row_blocks)

    def listed(self, found: dict[int, Tensor], expected: Iterable[int] | None = None) -> list[Tensor]:
        """The blocks in order, or CaptureError when one was not seen."""
        wanted = list(range(len(self.adapter.structure.attention_blocks)) if expected is None else expected)
        if sorted(found) != wanted:
            raise CaptureError(
                f"{len(found)} attention maps recorded in {self.adapter.name}, {len(wanted)} blocks declared"
            )
        return [found[block] for block in wanted]


def verify_rows(probabilities: Tensor, block: int) -> None:
    """Raise CaptureError unless every row of attention weights sums to 1."""
    error = (probabilities.detach().sum(-1) - 1).abs().max().item()
    if not error <= ROW_SUM_TOLERANCE:
        raise CaptureError(f"attention rows of block {block} miss 1 by {error:.2g}")


class WindowRecorder:
    """Keeps the attention inside the windows of every declared block."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter, self.running = adapter, list[int]()
        self.blocks: dict[int, Tensor] = {}

    def active(self) -> AbstractContextManager[object]:
        """Listens to the declared blocks inside the `with` statement."""
        return hearing(
            self,
            self.adapter.module,
            [block.path for block in self.adapter.structure.windows],
            self.adapter.source.attention,
        )

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Stand in for the fused kernel."""
        if self.running:
            options = {**dict(zip(KERNEL_OPTIONS, args, strict=False)), **kwargs}
            with torch.no_grad():
                self._keep(explicit_attention(query, key, value, **options)[1])  # type: ignore[arg-type]
        return kernel(query, key, value, *args, **kwargs)  # type: ignore[arg-type]

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Hear of an unfused attention."""
        if self.running:
            self._keep(probabilities.detach())
        return probabilities

    def _keep(self, probabilities: Tensor) -> None:
        block = self.running[-1]
        if block in self.blocks:
            raise CaptureError(f"attention block {block} ran twice in one pass; one call was declared")
        verify_rows(probabilities, block)
        self.blocks[block] = probabilities

    def listed(self) -> list[WindowAttention]:
        """Every block, windows told apart, shallow to deep."""
        declared = self.adapter.structure.windows
        if sorted(self.blocks) != list(range(len(declared))):
            raise CaptureError(
                f"{len(self.blocks)} attention maps recorded in {self.adapter.name}, {len(declared)} blocks declared"
            )
        return [WindowAttention(windows.split(self.blocks[i]), windows.geometry) for i, windows in enumerate(declared)]


def on_all_tokens(matrix: Tensor, length: int, rest: float) -> Tensor:
    """(..., q, k) of a block that works on some of the tokens -> (..., N, N); it leaves the others alone.

    A block over all tokens but the class token, which comes first, gains a first row and column; one with a single
    query is the first row. `rest` stands on the diagonal of what the block leaves alone: 1 for attention, 0 for
    gradients.

    >>> on_all_tokens(torch.tensor([[0.25, 0.75]]), 2, 1.0).tolist()
    [[0.25, 0.75], [0.0, 1.0]]
    """
    queries, keys = matrix.shape[-2:]
    if queries == length:
        return matrix
    full = (rest * torch.eye(length, dtype=matrix.dtype, device=matrix.device)).repeat(*matrix.shape[:-2], 1, 1)
    first = 0 if queries == 1 else length - queries
    full[..., first : first + queries, :] = 0
    full[..., first : first + queries, length - keys :] = matrix
    return full
