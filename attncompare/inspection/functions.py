"""Functions of torch by what they do, each in all its spellings; and which activations a network calls."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Functions = frozenset[Any]


def spellings(names: str) -> Functions:
    """Functions of these names: of torch.nn.functional, of torch, and of Tensor.

    >>> len(spellings("softmax"))
    3
    """
    by_name = {name: [getattr(place, name, None) for place in (F, torch, Tensor)] for name in names.split()}
    assert all(map(any, by_name.values())), f"a function of torch is misspelled: {names}"
    return frozenset(function for functions in by_name.values() for function in functions if callable(function))


RELU = spellings("relu relu_")
CLIPPED = spellings("relu6 hardtanh hardtanh_")
SMOOTH = spellings(
    "gelu silu mish hardswish elu elu_ selu celu leaky_relu leaky_relu_ prelu rrelu softplus tanh softsign logsigmoid"
)
GATES = spellings("sigmoid hardsigmoid")
"""Their values are shares of what they multiply; a network of ReLUs may have them, in squeeze-and-excitation."""

LINEAR, CONVOLUTION = spellings("linear"), spellings("conv2d")
MATRIX_PRODUCTS = spellings("matmul __matmul__ bmm einsum")
PRODUCTS = spellings("mul __mul__ __rmul__")
WRITTEN_PRODUCTS = spellings("mul_ __imul__")
QUOTIENTS = spellings("div div_ __truediv__")
SUMS = spellings("add add_ __add__ __radd__ __iadd__")
MEANS = spellings("mean adaptive_avg_pool1d adaptive_avg_pool2d avg_pool2d")
COPIES = spellings("dropout clone contiguous type_as") | {Tensor.to, Tensor.float}
MOVES = spellings(
    "reshape view permute transpose flatten unflatten unbind chunk split __getitem__ expand expand_as squeeze unsqueeze"
    " swapaxes movedim cat stack select narrow index_select"
) | {Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]


class ActivationNames(TorchFunctionMode):
    """While active, notes the names of the activation functions that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note an activation."""
        if func in RELU | CLIPPED | SMOOTH:
            self.names.add(func.__name__.removesuffix("_"))
        return func(*args, **(kwargs or {}))
