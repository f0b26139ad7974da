"""Backward passes with rules of their own for some functions, whichever modules call them and however often.

Each is a mode that is entered with `with`; the forward pass inside keeps its values, and gradients taken from it follow the
rules. Functions are met where they are called, so a ReLU that is no module, or one module used twice, is no exception.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from attncompare.capture.attention import AttentionCalls, kernel
from attncompare.capture.multi_head import multi_head_attention
from attncompare.capture.targets import CountedForward
from attncompare.errors import CaptureError

LOGITS_TOLERANCE = 1e-5
Call = Callable[..., Any]
Rule = Callable[[Tensor, Tensor, Call], Call]
"""(input, output, function) -> gradient of the output -> gradient of the input."""

RELU = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
CLIPPED = frozenset({F.relu6, F.hardtanh, F.hardtanh_})
SMOOTH = frozenset(
    {
        F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.elu_, F.selu, F.celu, F.leaky_relu, F.leaky_relu_, F.prelu,
        F.rrelu, F.softplus, F.tanh, torch.tanh, Tensor.tanh, F.softsign, F.logsigmoid,
    }
)  # fmt: skip
GATES = frozenset({F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.hardsigmoid})


class Ruled(Function):
    """A function of one tensor: its value forward; backward what `rule`, asked at once, makes of the gradient."""

    @staticmethod
    def forward(ctx: Any, call: Call, rule: Rule, x: Tensor) -> Tensor:
        """The value."""
        value: Tensor = call(x)
        ctx.back = rule(x.detach(), value, call)  # now: what follows may write into the value in place
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The rule."""
        return None, None, ctx.back(gradients[0])


class ActivationNames(TorchFunctionMode):
    """While active, notes the names of the activation functions that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note an activation."""
        if func in RELU | CLIPPED | SMOOTH:
            self.seen.add(func.__name__.removesuffix("_"))
        return func(*args, **(kwargs or {}))


class Rules(TorchFunctionMode):
    """Functions of one tensor, each by the rule that `rules` has for it."""

    def __init__(self, name: str, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.name, self.rules = name, rules

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Give a function its rule."""
        options = dict(kwargs or {})
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **options)
        if func not in self.rules:
            return func(*args, **options)
        x, rest = (args[0], args[1:]) if args else (options.pop("input"), ())
        found = Ruled.apply(out_of_place(func, rest, options), self.rules[func], x)
        return x.copy_(found) if writes(func, rest, options) else found

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        """Fused attention, as it is."""
        return kernel(query, key, value, *args, **options)

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Softmax needs no rule."""
        return probabilities


IN_PLACE = {F.relu_: F.relu, torch.relu_: F.relu, Tensor.relu_: F.relu, F.hardtanh_: F.hardtanh, F.elu_: F.elu,
            F.leaky_relu_: F.leaky_relu}  # fmt: skip
"""Functions that write into their input, and the same without: a rule needs the input as it was."""
FLAG_AT = {F.relu: 0, F.relu6: 0, F.silu: 0, F.mish: 0, F.hardswish: 0, F.hardsigmoid: 0, F.hardtanh: 2, F.elu: 1,
           F.celu: 1, F.selu: 0, F.leaky_relu: 1}  # fmt: skip
"""Where `inplace` stands among the arguments behind the input."""


def out_of_place(func: Any, rest: tuple[Any, ...], options: Mapping[str, Any]) -> Call:
    """The function of its first argument, the others given, that does not write into it."""
    at, pure = FLAG_AT.get(func), IN_PLACE.get(func, func)
    rest = rest if at is None or len(rest) <= at else (*rest[:at], False, *rest[at + 1 :])
    options = {name: value for name, value in options.items() if name != "inplace"}
    return lambda x: pure(x, *rest, **options)


def writes(func: Any, rest: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Whether a call changes its first argument."""
    at = FLAG_AT.get(func)
    return func in IN_PLACE or bool(options.get("inplace")) or (at is not None and len(rest) > at and bool(rest[at]))


def derivative(x: Tensor, call: Call) -> Tensor:
    """f'(x) of an elementwise function."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(call(x).sum(), x)[0]


def not_of_relus(names: Iterable[str]) -> str:
    """Why guided backpropagation is not defined for a network with these activations; "" where it is."""
    others = sorted(set(names) - {"relu", "relu6", "hardtanh"})
    if others:
        return f"it changes the backward pass of ReLUs, and this model uses {', '.join(others)}; use saliency"
    return "" if set(names) else "it changes the backward pass of ReLUs, and this model has none; use saliency"


def guided_relu() -> Rules:
    """Guided backpropagation (arXiv:1412.6806): a ReLU passes back only what is positive, where its input was."""

    def rule(x: Tensor, value: Tensor, call: Call) -> Call:
        open_ = derivative(x, call)
        return lambda gradient: gradient.clamp(min=0) * open_

    return Rules("guided backpropagation", dict.fromkeys(RELU | CLIPPED, rule))


SMALL = 1e-7  # differences below this share of the inputs' size are rounding: the derivative takes the quotient's place


def rescale() -> Rules:
    """DeepLIFT's rescale rule (arXiv:1704.02685, equation 11) for batches of images followed by their baselines.

    An activation multiplies by (f(x) - f(x0)) / (x - x0); max pooling hands the larger of the two outputs' surplus to the
    place it came from, in each of the two.
    """
    elementwise = RELU | CLIPPED | SMOOTH | GATES

    def rule(x: Tensor, value: Tensor, call: Call) -> Call:
        inputs, outputs = _difference(x), _difference(value)
        close = inputs.abs() <= SMALL * x.abs().amax()
        multiplier = torch.where(close, derivative(x, call), outputs / torch.where(close, 1, inputs))
        return lambda gradient: gradient * multiplier

    return Rules("DeepLIFT's rescale rule", {**dict.fromkeys(elementwise, rule), F.max_pool2d: _pooled})


def _difference(x: Tensor) -> Tensor:
    """X - x0 for both halves of a batch."""
    image, baseline = x.chunk(2)
    return (image - baseline).repeat(2, *(1,) * (x.ndim - 1))


def _pooled(x: Tensor, value: Tensor, call: Call) -> Call:
    """Max pooling: what a window's larger output has over the other goes to the place in the input that made it."""
    image, baseline = value.chunk(2)
    larger = torch.maximum(image, baseline)
    surplus = torch.cat([larger - baseline, image - larger])
    x, change = x.clone(), _difference(x)  # a later function may write into the input
    close = change.abs() <= SMALL * x.abs().amax()

    def back(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            source = x.detach().requires_grad_(True)
            output = call(source)
        parts = torch.autograd.grad(output, source, gradient * surplus, retain_graph=True)[0].chunk(2)
        plain = torch.autograd.grad(output, source, gradient)[0]
        total = (parts[0] + parts[1]).repeat(2, *(1,) * (x.ndim - 1))
        return torch.where(close, plain, total / torch.where(close, 1, change))

    return back


def scores_under(rules: Rules, forward: CountedForward, images: Tensor) -> Tensor:
    """(n,K) scores of a forward pass inside `rules`; CaptureError, once for each model, if they change its values."""
    with rules, AttentionCalls(rules):
        scores = forward(images)
    mark = rules.name
    if mark not in forward.adapter.checked_recordings:
        with torch.no_grad():
            plain = forward.scored.outputs(forward.adapter.forward(images))
        error = float((plain - scores.detach()).abs().max())
        if not error <= LOGITS_TOLERANCE * max(1.0, float(plain.abs().max())):
            raise CaptureError(
                f"{mark} changes the scores of {forward.adapter.name} by {error:.2g}; its maps would be wrong"
            )
        forward.adapter.checked_recordings.add(mark)
    return scores  # type: ignore[no-any-return]
