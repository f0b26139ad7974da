"""What listens during a pass: the attention recorder, and plain input and output hooks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.attention import attention_rows, explicit_attention, kernel
from attncompare.errors import CaptureError
from attncompare.signals import Signal

ROW_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Need:
    """A signal and the options that change what is recorded; equal needs are recorded once."""

    signal: Signal
    options: tuple[tuple[str, object], ...] = ()

    def option(self, name: str, default: object = None) -> object:
        """One option's value."""
        return dict(self.options).get(name, default)


class AttentionRecorder:
    """Keeps what the needs ask for of every declared attention block."""

    def __init__(self, adapter: ModelAdapter, needs: Iterable[Need], running: list[int]) -> None:
        self.adapter, self.running = adapter, running
        wanted = {need.signal for need in needs}
        self.fusions = {str(need.option("fusion", "mean")) for need in needs if need.signal is Signal.FUSED_ATTENTION}
        self.full = bool(wanted & {Signal.ATTENTION, Signal.ATTENTION_GRADIENTS})
        self.rows = Signal.CLASS_ATTENTION in wanted
        self.blocks: dict[int, Tensor] = {}
        self.fused: dict[str, dict[int, Tensor]] = {fusion: {} for fusion in self.fusions}
        self.class_rows: dict[int, Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Stand in for the kernel."""
        if not self.running:
            self._refuse_undeclared(query, key)
            return kernel(query, key, value, *args, **kwargs)  # type: ignore[arg-type]
        block, layout = self.running[-1], self.adapter.tokens
        assert layout is not None
        names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        if not (self.full or self.fusions):
            self._verify_length((query.shape[-2], key.shape[-2]), block)
            taken = ("attn_mask", "is_causal", "scale", "enable_gqa")
            rows = {name: value for name, value in options.items() if name in taken}
            self._keep(self.class_rows, block, attention_rows(query, key, layout.rows(), **rows))  # type: ignore[arg-type]
            return kernel(query, key, value, **options)  # type: ignore[arg-type]
        if not self.full:
            with torch.no_grad():
                probabilities = explicit_attention(query, key, value, **options)[1]  # type: ignore[arg-type]
            output = kernel(query, key, value, **options)  # type: ignore[arg-type]
        else:
            output, probabilities = explicit_attention(query, key, value, **options)  # type: ignore[arg-type]
            self._keep(self.blocks, block, probabilities)
        seen = probabilities.detach()
        self._verify(seen, block)
        for fusion in self.fusions:
            fused = seen.mean(1) if fusion == "mean" else seen.amax(1) if fusion == "max" else seen.amin(1)
            self._keep(self.fused[fusion], block, fused)
        if self.rows:
            self._keep(self.class_rows, block, seen[:, :, layout.rows()].mean(dim=2))
        return output

    @staticmethod
    def _keep(into: dict[int, Tensor], block: int, value: Tensor) -> None:
        if block in into:
            raise CaptureError(f"attention block {block} ran twice in one pass; one call was declared")
        into[block] = value

    def _refuse_undeclared(self, query: Tensor, key: Tensor) -> None:
        """Attention among all tokens outside the declared blocks would be missing from every map."""
        layout = self.adapter.tokens
        if layout is not None and query.shape[-2] == key.shape[-2] == layout.length:
            declared = len(self.adapter.anatomy.attention_blocks)
            raise CaptureError(f"{self.adapter.name} attends outside the {declared} attention blocks it declares")

    def _verify_length(self, found: tuple[int, int], block: int) -> None:
        layout = self.adapter.tokens
        assert layout is not None
        if found != (layout.length, layout.length):
            raise CaptureError(f"attention block {block} is {found}, the layout says {layout.length} tokens")

    def _verify(self, probabilities: Tensor, block: int) -> None:
        self._verify_length((probabilities.shape[-2], probabilities.shape[-1]), block)
        error = (probabilities.sum(-1) - 1).abs().max().item()
        if not error <= ROW_SUM_TOLERANCE:
            raise CaptureError(f"attention rows of block {block} miss 1 by {error:.2g}")

    def listed(self, found: dict[int, Tensor]) -> list[Tensor]:
        """The blocks in order, or CaptureError when one was not seen."""
        expected = len(self.adapter.anatomy.attention_blocks)
        if sorted(found) != list(range(expected)):
            raise CaptureError(
                f"{len(found)} attention maps recorded in {self.adapter.name}, {expected} blocks declared"
            )
        return [found[block] for block in range(expected)]


class OutputRecorder:
    """Keeps the inputs and outputs of plain modules (gates, pooled features)."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def output_hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """A forward hook that keeps copies: what comes after may write in place."""

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.outputs[path] = output.detach().clone()

        return keep

    def input_hook(self, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A forward pre-hook that keeps a copy of the first input."""

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs[path] = args[0].detach().clone()

        return keep
