"""What a traced pass keeps of every module call, of every attention call, and of the tensors that pass between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

BATCH = 2  # images in the traced pass
TOLERANCE = 1e-4


class Arguments(NamedTuple):
    """What a module was called with, by position and by name."""

    inputs: tuple[object, ...]
    options: Mapping[str, object]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among them."""
        return [x for x in (*self.inputs, *self.options.values()) if isinstance(x, Tensor)]

    @property
    def first(self) -> Tensor | None:
        """The first tensor."""
        return next(iter(self.tensors), None)


@dataclass(frozen=True, eq=False)
class Note:
    """What is kept of a tensor: keeping the tensors themselves would take as much memory as training.

    number: identifies the tensor; no two tensors share one. varies: whether it differs between the two images. blank:
    whether it is all zeros. values: the tensor itself where it holds one vector per image. marks: (B,N) of a sequence of
    tokens, one fixed mix of each token's channels, by which tokens are told apart.
    """

    shape: torch.Size
    number: int
    varies: bool = False
    blank: bool = False
    values: Tensor | None = None
    marks: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor, number: int) -> "Note":
        """The note of a tensor; only its shape is kept of one that is not a batch of floating-point numbers."""
        shape = tensor.shape
        if len(shape) < 2 or shape[0] != BATCH or not tensor.numel() or not tensor.is_floating_point():
            return cls(shape, number)
        return cls(
            shape,
            number,
            varies=not torch.equal(tensor[0], tensor[1]),
            blank=not bool(tensor.any()),
            values=tensor if tensor.numel() == BATCH * max(shape[1:]) else None,
            marks=marks_of(tensor) if len(shape) == 3 else None,
        )

    def same_tokens(self, other: "Note | None") -> bool:
        """Whether both are of the same sequence of tokens, or of an equal one."""
        if other is None or self.marks is None or other.marks is None:
            return False
        return self.number == other.number or (self.shape == other.shape and torch.equal(self.marks, other.marks))


@dataclass
class Call:
    """One run of a module.

    run: which of the module's runs it was, from 0. arguments: all that went in, kept only if attention ran inside.
    gate: the path of the inner module whose output is the ratio of this output to this input. steady: such a ratio was
    seen, but it was the same for both images. direct: whether a hook on the module can replace the output.
    """

    path: str
    run: int
    module: nn.Module
    input: Note | None
    output: Note
    arguments: Arguments | None = None
    gate: str | None = None
    steady: bool = False
    direct: bool = True

    @property
    def input_tensor(self) -> Tensor | None:
        """The first tensor that went in, where the arguments are kept."""
        return None if self.arguments is None else self.arguments.first

    def rerun(self, x: Tensor) -> None:
        """Call the module again with another first tensor and otherwise the same arguments."""
        assert self.arguments is not None
        (inputs, options), old = self.arguments, self.arguments.first
        self.module(
            *(x if value is old else value for value in inputs),
            **{name: x if value is old else value for name, value in options.items()},
        )


@dataclass(frozen=True)
class AttentionCall:
    """One attention: the module it ran in and the shape (..., Nq, Nk) of its weights."""

    path: str
    shape: tuple[int, ...]

    @property
    def queries(self) -> int:
        """Nq."""
        return self.shape[-2]

    @property
    def keys(self) -> int:
        """Nk."""
        return self.shape[-1]

    @property
    def is_global(self) -> bool:
        """Whether the weights are (B,heads,Nq,Nk), not folded with windows."""
        return len(self.shape) == 4 and self.shape[0] == BATCH


@cache
def _mix(channels: int) -> Tensor:
    return torch.randn(channels, generator=torch.Generator().manual_seed(0))


def marks_of(tokens: Tensor) -> Tensor:
    """(...,C) -> (...): one fixed mix of the channels of each token."""
    return tokens.detach().contiguous() @ _mix(tokens.shape[-1]).to(tokens)


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding at the scale of b, and not all zero."""
    scale = float(b.abs().max())
    return scale > 0 and bool((a - b).abs().max() <= TOLERANCE * scale)
