"""One way to see attention in torchvision, timm and transformers: stand in for the fused kernel, listen to softmax."""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

kernel = F.scaled_dot_product_attention
"""The fused kernel itself, as it is while nothing stands in for it."""

_MHA = F.multi_head_attention_forward
_softmax = F.softmax
_SOFTMAXES = frozenset({F.softmax, torch.softmax, Tensor.softmax})


class Listener(Protocol):
    """Receives each attention call while AttentionCalls is active."""

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stand in for the fused kernel: same arguments, same result."""
        ...

    def softmax(self, probabilities: Tensor) -> Tensor:
        """See the result (..., Nq, Nk), 4-D or more, of a softmax over the last axis; what it returns is used."""
        ...


class BlockListener(Listener, Protocol):
    """A listener that knows which declared blocks are running, by their indices, the innermost last."""

    running: list[int]


class AttentionCalls(TorchFunctionMode):
    """While active, `listener` stands in for every fused attention call and hears of every unfused one.

    An unfused attention is a softmax over the last axis of a tensor with four axes or more. nn.MultiheadAttention
    reaches the kernel and softmax through module globals from inside a function that the mode itself intercepts, so for
    the length of that call the globals are swapped and put back.
    """

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Divert attention, pass on everything else."""
        kwargs = kwargs or {}
        if func is kernel:
            return self.listener.kernel(*args, **kwargs)
        if func in _SOFTMAXES:
            result = func(*args, **kwargs)
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            return self.listener.softmax(result) if result.ndim > 3 and axis in (-1, result.ndim - 1) else result
        if func is _MHA:
            return self._multi_head(args, kwargs)
        return func(*args, **kwargs)

    def _multi_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """nn.MultiheadAttention: the kernel when its weights are not asked for, else softmax with the heads folded in."""
        heads = args[4] if len(args) > 4 else kwargs["num_heads"]
        owner = threading.get_ident()  # another thread's forward pass meets the swapped globals, too

        def fused(*given: Any, **options: Any) -> Tensor:
            mine = threading.get_ident() == owner
            return self.listener.kernel(*given, **options) if mine else kernel(*given, **options)

        def listened(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            result = _softmax(x, *rest, **options)
            if threading.get_ident() != owner:
                return result
            return self.listener.softmax(result.reshape(-1, heads, *result.shape[1:])).flatten(0, 1)

        previous = F.scaled_dot_product_attention, F.softmax
        F.scaled_dot_product_attention, F.softmax = fused, listened  # type: ignore[assignment]
        try:
            return _MHA(*args, **kwargs)
        finally:
            F.scaled_dot_product_attention, F.softmax = previous


Recorder = type[AttentionCalls]
"""AttentionCalls, or a subclass that hears of more."""


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
    query = query * factor
    # A product with a single row would first copy the keys of a batch.
    scores = (query * key).sum(-1)[..., None, :] if query.shape[-2] == 1 else query @ key.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(dim=-1)


@contextmanager
def hearing(
    listener: BlockListener, model: nn.Module, blocks: Iterable[str], recorder: Recorder = AttentionCalls
) -> Iterator[None]:
    """Let a listener hear the attention of the declared blocks, and know which of them is running."""
    with ExitStack() as stack:
        for index, path in enumerate(blocks):
            module = model.get_submodule(path)

            def enter(module: nn.Module, args: object, index: int = index) -> None:
                listener.running.append(index)

            def leave(module: nn.Module, args: object, output: object) -> None:
                listener.running.pop()

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(recorder(listener))
        yield


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
            several = query[..., part[0] : part[0] + 1, :] if len(part) == 1 else query[..., part, :]
            summed = attention_probabilities(several, key, mask=part_mask, scale=scale).sum(dim=-2)
            total = summed if total is None else total + summed
        assert total is not None
        return total / len(rows)
