"""The autograd graph of one probing pass: what the score depends on, and which module feeds which."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from attncompare.inspection.trace import Call, Network, Trace, first_tensor
from attncompare.state import disable_mha_fastpath, preserve_state


@dataclass(frozen=True)
class Means:
    """The spatial means (1,C) of an output, 4-D as read in NCHW and in NHWC or 3-D as tokens, and of its positive part."""

    plain: tuple[Tensor, ...]
    positive: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Taken at once: what follows may write into the output in place."""
        axes = {4: ((2, 3), (1, 2)), 3: ((1,),)}.get(tensor.ndim, ())
        with torch.no_grad():
            return cls(
                tuple(tensor.mean(over) for over in axes), tuple(tensor.clamp(min=0).mean(over) for over in axes)
            )


class Graph:
    """A pass with the first of the traced images, of which all is kept that its gradients need.

    One image, because this is what takes the memory: as much as any method with a gradient takes for one image.
    """

    def __init__(self, source: Network, seen: Trace) -> None:
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.means: dict[str, list[Means]] = defaultdict(list)
        self.inputs: dict[str, list[tuple[Tensor, ...]]] = defaultdict(list)
        self.images = seen.images[:1].detach().requires_grad_(True)
        self.last_linear = next((c for c in reversed(seen.calls) if isinstance(c.module, nn.Linear)), None)
        with ExitStack() as stack:
            stack.enter_context(preserve_state(source.model))
            stack.enter_context(disable_mha_fastpath())
            for path, module in source.model.named_modules():
                if path:
                    stack.callback(module.register_forward_hook(self._keeper(path), with_kwargs=True).remove)
            self.logits = source.forward(self.images)

    def _keeper(self, path: str) -> Callable[[nn.Module, tuple[object, ...], Mapping[str, object], object], None]:
        def keep(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object], output: object) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                given = tuple(x for x in (*args, *options.values()) if isinstance(x, Tensor))
                self.outputs[path].append(tensor)
                self.means[path].append(Means.of(tensor))
                self.inputs[path].append(given)

        return keep

    def output(self, call: Call | None) -> Tensor | None:
        """What came out of a module, where it depends on the image."""
        found = [] if call is None else self.outputs[call.path][call.run : call.run + 1]
        return found[0] if found and found[0].requires_grad else None

    def input(self, call: Call) -> Tensor | None:
        """The first tensor that went into a module."""
        found = self.inputs[call.path][call.run : call.run + 1]
        return found[0][0] if found and found[0] else None

    def means_of(self, call: Call) -> Means:
        """The means of what came out of a module."""
        found = self.means[call.path][call.run : call.run + 1]
        return found[0] if found else Means((), ())

    def leads_to_score(self, calls: list[Call]) -> list[bool]:
        """Whether the score was computed from each output.

        By the graph, not by value: behind a norm or head that starts at zero every gradient is zero.
        """
        tensors = [self.output(call) for call in calls]
        known = [tensor for tensor in tensors if tensor is not None]
        if not known or not self.logits.requires_grad:
            return [True] * len(calls)
        found = iter(torch.autograd.grad(self.logits.sum(), known, retain_graph=True, allow_unused=True))
        return [tensor is not None and next(found) is not None for tensor in tensors]

    def follows(self, before: Call | None, after: Call | None) -> bool:
        """Whether what goes into one module was computed from what came out of the other."""
        given = self.output(before)
        if given is None or after is None or not self.inputs[after.path]:
            return False
        # All that goes in: the query of a pooling head is a parameter, its keys are the tokens.
        ends = [x.sum() for x in self.inputs[after.path][after.run] if x.requires_grad]
        return bool(ends) and torch.autograd.grad(ends, given, retain_graph=True, allow_unused=True)[0] is not None

    def score_gradients(self, calls: list[Call], read: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        """What `read` makes of the gradient of a random mix of the outputs with respect to each call's output.

        Each gradient is read as it passes, and none is kept. None where no gradient arrives.
        """
        tensors = [self.output(call) for call in calls]
        for score in self._scores():
            found = _passing(score, self.images, tensors, read) if score.requires_grad else []
            if any(one is not None and bool(one.any()) for one in found):
                return found
        return [None] * len(calls)

    def _scores(self) -> list[Tensor]:
        """A mix of the outputs; what goes into the last linear layer, since a zero-initialised head passes no gradient."""
        mix = torch.randn(self.logits.shape[1], generator=torch.Generator().manual_seed(0)).to(self.logits.device)
        scores = [(self.logits.float() @ mix).sum()]
        given = None if self.last_linear is None else self.input(self.last_linear)
        return scores if given is None else [*scores, given.sum()]


def _passing(
    score: Tensor, images: Tensor, tensors: list[Tensor | None], read: Callable[[Tensor], Tensor]
) -> list[Tensor | None]:
    """What `read` makes of the gradient of the score at each tensor, in one backward pass."""
    found: list[Tensor | None] = [None] * len(tensors)

    def reader(place: int) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            found[place] = read(gradient)

        return keep

    handles = [
        t.register_hook(reader(i))  # type: ignore[no-untyped-call]
        for i, t in enumerate(tensors)
        if t is not None
    ]
    torch.autograd.grad(score, images, retain_graph=True, allow_unused=True)
    for handle in handles:
        handle.remove()
    return found
