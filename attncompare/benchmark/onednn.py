"""Linear layers computed by oneDNN, on processors where torch's own product of matrices is slower."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SLOW_VENDOR = "AuthenticAMD"
"""MKL, torch's library for float32 products on x86, reaches three quarters of oneDNN's speed there."""
SMALLEST_PRODUCT = 1 << 22
"""Multiplications; below, preparing the weights costs more than oneDNN saves."""


class OneDNNLinear(TorchFunctionMode):
    """Inside, in this thread, `F.linear` is oneDNN's in float32: the same sums, in another order.

    Nothing of the model or of the process is changed. Small products, others than float32 on a CPU, tensors of other
    classes and passes that are differentiated stay torch's.

    >>> from torch import nn
    >>> layer, tokens = nn.Linear(256, 256), torch.rand(1, 64, 256)
    >>> with torch.no_grad(), OneDNNLinear():
    ...     found = layer(tokens)
    >>> torch.allclose(found, layer(tokens), atol=1e-6)
    True
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        if func is F.linear and _worth_it(*args, **(kwargs or {})):
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _worth_it(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = all(
        type(one) in (Tensor, nn.Parameter)
        and one.dtype == torch.float32
        and one.device.type == "cpu"
        and one.layout == torch.strided
        for one in (input, weight, *(() if bias is None else (bias,)))
    )
    return (
        plain
        and input.ndim >= 2
        and input.numel() * len(weight) >= SMALLEST_PRODUCT
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found


@cache
def onednn_is_faster() -> bool:
    """Whether torch has both libraries and the processor is one on which MKL is slow."""
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _vendor() == SLOW_VENDOR
    )


def _vendor() -> str:
    """The maker of the processor as it names itself; the last word of what Windows says."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor().rpartition(" ")[2]
    fields = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((value.strip() for name, _, value in fields if name.strip() == "vendor_id"), "")
