"""Linear layers computed by oneDNN, on processors where torch's own product of matrices is slower."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

SLOW_VENDOR = "AuthenticAMD"
"""MKL, torch's library for float32 products on x86, reaches three quarters of oneDNN's speed there in large products."""
SMALLEST_PRODUCT = 1 << 22
"""Multiplications; below, preparing the weights costs more than oneDNN saves."""


class OneDNNLinear(TorchFunctionMode):
    """Inside, in this thread, `F.linear` is oneDNN's in float32: the same sums, in another order.

    Nothing of the model or of the process is changed. Torch's stay: products of fewer than `smallest` multiplications,
    others than float32 on a CPU, tensors of other classes or odd shapes, passes that are differentiated, transformed
    (torch.func), traced or compiled, and the projections inside `nn.MultiheadAttention`, which torch calls behind the mode.
    largest: multiplications of the largest product that oneDNN computed.

    >>> from torch import nn
    >>> layer, tokens = nn.Linear(256, 256), torch.rand(1, 64, 256)
    >>> with torch.no_grad(), OneDNNLinear() as mode:
    ...     found = layer(tokens)
    >>> torch.allclose(found, layer(tokens), atol=1e-6), mode.largest == 64 * 256 * 256
    (True, True)
    """

    def __init__(self, smallest: int = SMALLEST_PRODUCT) -> None:
        super().__init__()
        self.smallest, self.largest = smallest, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if _is_watched() or not _is_plain(input, weight, bias) or input.numel() * len(weight) < self.smallest:
            return F.linear(input, weight, bias)
        self.largest = max(self.largest, input.numel() * len(weight))
        try:
            return _product(input, weight, bias)
        except RuntimeError:  # what oneDNN has no room or no kernel for; torch says it in words that callers know
            return F.linear(input, weight, bias)


def _is_plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the operator, which checks nothing, takes these: it reads the bias as one row of memory, say."""
    given = (input, weight) if bias is None else (input, weight, bias)
    return (
        all(type(one) in (Tensor, nn.Parameter) and one.dtype == torch.float32 for one in given)
        and all(one.device.type == "cpu" and one.layout == torch.strided for one in given)
        and weight.ndim == 2
        and input.ndim >= 2
        and input.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    )


def _is_watched() -> bool:
    """Whether torch does more with a product than compute it, for which the operator has no rules."""
    return (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_compiling()
    )


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found


def has_onednn_linear() -> bool:
    """Whether this torch has oneDNN's product and tells what `OneDNNLinear` asks: most of it is no public interface."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch._C._functorch, "peek_interpreter_stack")
        and hasattr(forward_ad, "_current_level")
    )


@cache
def onednn_is_faster() -> bool:
    """Whether torch has both libraries and the processor is one on which MKL is slow."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and has_onednn_linear() and _vendor() == SLOW_VENDOR


def _vendor() -> str:
    """The maker of the processor as it names itself; the last word of what Windows says."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor().rpartition(" ")[2]
    fields = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((value.strip() for name, _, value in fields if name.strip() == "vendor_id"), "")
