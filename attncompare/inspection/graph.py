"""The autograd graph of a pass: what the score depends on, and which module feeds which."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attncompare.inspection.calls import Arguments, Call
from attncompare.inspection.layout import find_layout
from attncompare.inspection.trace import Trace, Watcher, first_tensor


@dataclass(frozen=True)
class Step:
    """One run of a module: the tensors that went in, the output, and the spatial means (1,C) of output and of its ReLU.

    The means are taken at once, since what follows may write into the output; None where it is no map or sequence.
    """

    inputs: list[Tensor]
    output: Tensor
    mean: Tensor | None
    positive_mean: Tensor | None


class Graph(Watcher):
    """A pass with the first of the traced images, of which everything is kept that its gradients need.

    One image, because this is what takes the memory: as much as any method with a gradient takes for one image.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.steps: dict[tuple[str, int], Step] = {}
        self._runs: Counter[str] = Counter()
        self.images = trace.images[:1].detach().requires_grad_(True)
        self.last_linear = next((c for c in reversed(trace.calls) if isinstance(c.module, nn.Linear)), None)
        with self.watching(trace.network.module, graph=True):
            self.logits = trace.network.forward(self.images)

    def after(self, path: str, module: nn.Module, arguments: Arguments, output: object) -> None:
        """Keep a step."""
        tensor = first_tensor(output)
        if tensor is None:
            return
        channels_last = find_layout(tensor.shape, self.trace.network.size) == "nhwc"
        axes = {4: (1, 2) if channels_last else (2, 3), 3: (1,)}.get(tensor.ndim)
        with torch.no_grad():
            means = (None, None) if axes is None else (tensor.mean(axes), tensor.clamp(min=0).mean(axes))
        self.steps[path, self._runs[path]] = Step(arguments.tensors, tensor, *means)
        self._runs[path] += 1

    def step(self, call: Call | None) -> Step | None:
        """The step of a traced call."""
        return None if call is None else self.steps.get((call.path, call.run))

    def output(self, call: Call | None) -> Tensor | None:
        """What came out of a module, where it depends on the image."""
        step = self.step(call)
        return step.output if step is not None and step.output.requires_grad else None

    def input(self, call: Call | None) -> Tensor | None:
        """The first tensor that went into a module."""
        step = self.step(call)
        return None if step is None else next(iter(step.inputs), None)

    def leading_to_score(self, calls: list[Call]) -> list[Call]:
        """The calls from whose output the score was computed.

        By the graph, not by value: behind a norm or head that starts at zero every gradient is zero.
        """
        known = [(call, output) for call in calls if (output := self.output(call)) is not None]
        if not known or not self.logits.requires_grad:
            return calls
        outputs = [output for _, output in known]
        gradients = torch.autograd.grad(self.logits.sum(), outputs, retain_graph=True, allow_unused=True)
        return [call for (call, _), gradient in zip(known, gradients, strict=True) if gradient is not None]

    def follows(self, before: Call | None, after: Call | None) -> bool:
        """Whether what goes into one module was computed from what came out of the other."""
        output, step = self.output(before), self.step(after)
        if output is None or step is None:
            return False
        # All that goes in: the query of a pooling head is a parameter, its keys are the tokens.
        ends = [x.sum() for x in step.inputs if x.requires_grad]
        return bool(ends) and torch.autograd.grad(ends, output, retain_graph=True, allow_unused=True)[0] is not None

    def score_gradients(self, calls: list[Call], read: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        """`read` of the gradient of a random mix of the outputs with respect to each call's output.

        Each gradient is read as it passes, and none is kept. None where no gradient arrives.
        """
        outputs = [self.output(call) for call in calls]
        for score in self._scores():
            gradients = self._gradients(score, outputs, read) if score.requires_grad else {}
            if any(bool(gradient.any()) for gradient in gradients.values()):
                return [gradients.get(place) for place in range(len(calls))]
        return [None] * len(calls)

    def _scores(self) -> list[Tensor]:
        """A mix of the outputs; what goes into the last linear layer, since a zero-initialized head passes no gradient."""
        mix = torch.randn(self.logits.shape[1], generator=torch.Generator().manual_seed(0)).to(self.logits.device)
        scores = [(self.logits.float() @ mix).sum()]
        pooled = self.input(self.last_linear)
        return scores if pooled is None else [*scores, pooled.sum()]

    def _gradients(
        self, score: Tensor, outputs: list[Tensor | None], read: Callable[[Tensor], Tensor]
    ) -> dict[int, Tensor]:
        """`read` of the gradient of the score at each output that it arrives at, by place, in one backward pass."""
        gradients: dict[int, Tensor] = {}

        def reader(place: int) -> Callable[[Tensor], None]:
            return lambda gradient: gradients.update({place: read(gradient)})

        handles = [
            output.register_hook(reader(place))  # type: ignore[no-untyped-call]
            for place, output in enumerate(outputs)
            if output is not None
        ]
        torch.autograd.grad(score, self.images, retain_graph=True, allow_unused=True)
        for handle in handles:
            handle.remove()
        return gradients
