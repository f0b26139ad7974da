"""One way to see attention in torchvision, timm and transformers: stand in for the fused kernel while recording."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

kernel = F.scaled_dot_product_attention
"""The fused kernel itself, as it is while nothing stands in for it."""

_MHA = F.multi_head_attention_forward

Handler = Callable[..., Tensor]


class AttentionCalls(TorchFunctionMode):
    """While active, every scaled_dot_product_attention goes to `handler(query, key, value, **options)` instead.

    nn.MultiheadAttention reaches the kernel through a module global from inside a function that the mode itself
    intercepts, so for the length of that call the global is swapped and put back.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.handler = handler

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Divert attention, pass on everything else."""
        kwargs = kwargs or {}
        if func is kernel:
            return self.handler(*args, **kwargs)
        if func is _MHA:
            previous = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = self.handler
            try:
                return func(*args, **kwargs)
            finally:
                F.scaled_dot_product_attention = previous
        return func(*args, **kwargs)


def _mask(attn_mask: Tensor | None, is_causal: bool, queries: int, keys: int, like: Tensor) -> Tensor | None:
    """The additive mask of a kernel call."""
    if is_causal:
        lower = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril()
        return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill(~lower, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        return torch.zeros_like(attn_mask, dtype=like.dtype).masked_fill(~attn_mask, -math.inf)
    return attn_mask


def attention_probabilities(
    query: Tensor, key: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(Q K^T * scale + mask), (B,heads,Nq,Nk): what the fused kernel computes and does not return."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(dim=-1)


@contextmanager
def slow_attention_path() -> Iterator[None]:
    """Switch off the encoder fast path, which bypasses every Python-level attention call; restored on exit."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def current_block(model: nn.Module, blocks: Iterable[str]) -> Iterator[list[int]]:
    """Yield a list that holds the index of the declared attention block that is running, or nothing outside them."""
    running: list[int] = []
    handles = []
    for index, path in enumerate(blocks):
        module = model.get_submodule(path)

        def enter(module: nn.Module, args: object, index: int = index) -> None:
            running.append(index)

        def leave(module: nn.Module, args: object, output: object) -> None:
            running.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _one_per_head(shared: Tensor, query: Tensor) -> Tensor:
    """Grouped keys or values, repeated so that every query head has its own."""
    return shared.repeat_interleave(query.shape[-3] // shared.shape[-3], -3)


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """(output, probabilities) of one kernel call; the probabilities stay in the graph, or start it.

    When nothing below asks for gradients the probabilities become a leaf, so a backward pass stops here.
    """
    if enable_gqa:
        key, value = _one_per_head(key, query), _one_per_head(value, query)
    mask = _mask(attn_mask, is_causal, query.shape[-2], key.shape[-2], query)
    probabilities = attention_probabilities(query, key, mask=mask, scale=scale)
    if torch.is_grad_enabled() and not probabilities.requires_grad:
        probabilities = probabilities.detach().requires_grad_(True)
    return probabilities @ value, probabilities


def attention_rows(
    query: Tensor,
    key: Tensor,
    rows: list[int],
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 64,
) -> Tensor:
    """(B,heads,Nk) mean of the given query rows, in O(Nk) memory: rows are taken `chunk` at a time."""
    with torch.no_grad():
        key = _one_per_head(key, query) if enable_gqa else key
        mask = _mask(attn_mask, is_causal, query.shape[-2], key.shape[-2], query)
        total: Tensor | None = None
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            part_mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
            summed = attention_probabilities(query[..., part, :], key, mask=part_mask, scale=scale).sum(dim=-2)
            total = summed if total is None else total + summed
        assert total is not None
        return total / len(rows)
