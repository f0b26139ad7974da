"""The right gradient of batch norm for a single image.

PyTorch's CPU kernel (seen in 2.14) mistakes the memory format of the incoming gradient when the batch has one image and
the gradient comes from a sequence of tokens: its strides then fit both formats, and the values are read in the wrong
order. No error is raised; the saliency map of one image differs from that of the same image in a batch by its whole
range. Plain contiguous inputs and gradients are read rightly.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NORMS = frozenset({F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm})


class ContiguousNorms(TorchFunctionMode):
    """While active, batch and instance norms of one image see contiguous inputs and gradients only."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make the input contiguous, and the gradient when it comes."""
        kwargs = kwargs or {}
        if func not in _NORMS or not args or len(args[0]) != 1:
            return func(*args, **kwargs)
        output: Tensor = func(args[0].contiguous(), *args[1:], **kwargs)
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
        return output
