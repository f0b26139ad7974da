"""The engine of changed backward rules: functions keep their values, and gradients taken of these follow rules.

A method is a table, functions -> rule, and a rule for every function that the table leaves out. Functions are met where they
are called, so a ReLU need not be a module, and one module may be used twice. The model itself is not changed: when the
context ends, every function is as it was.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from attncompare.backward.multi_head import multi_head_attention

Call = Callable[..., Any]
Rule = Callable[[Any, Any, Any], Any]
"""(function, arguments, options) -> the function's value; how gradients reach the arguments is the rule."""


class Rules(TorchFunctionMode):
    """While active, a function that gradients flow through runs by its rule in the table, or else by `otherwise`."""

    def __init__(self, name: str, table: Mapping[frozenset[Any], Rule], *, otherwise: Rule) -> None:
        super().__init__()
        self.name, self.otherwise = name, otherwise
        self.rule_of = {func: rule for functions, rule in table.items() for func in functions}
        assert len(self.rule_of) == sum(map(len, table)), f"{name}: a function has two rules"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function by its rule; nn.MultiheadAttention's by the rules of the functions that it is made of."""
        options = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **options)
        if not growing((*args, *options.values())):
            return func(*args, **options)
        return self.rule_of.get(func, self.otherwise)(func, args, options)


def growing(values: Iterable[object]) -> list[Tensor]:
    """The tensors that gradients flow to, those in lists and tuples included."""
    found = (growing(x) if isinstance(x, list | tuple) else [x] for x in values)
    return [x for several in found for x in several if isinstance(x, Tensor) and x.requires_grad]


def plain(func: Any, args: Any, options: Any) -> Any:
    """The function's own gradient."""
    return func(*args, **options)


def constant(func: Any, args: Any, options: Any) -> Any:
    """No gradient: the value counts as a constant."""
    call, x = _of_first(func, args, options)
    return call(x.detach())


def one_input(backward: Call) -> Rule:
    """The rule of functions of one tensor, the first argument, which they may write into."""

    def rule(func: Any, args: Any, options: Any) -> Any:
        call, x = _of_first(func, args, options)
        value = ruled(call, backward, x)
        return x.copy_(value) if _writes(func, options) else value

    return rule


def _of_first(func: Any, args: Any, options: Any) -> tuple[Call, Tensor]:
    """A function of its first argument alone, which it does not write into, and that argument."""
    x, rest = (args[0], args[1:]) if args else (options["input"], ())
    named, writes = {name: value for name, value in options.items() if name != "input"}, _writes(func, options)
    return lambda x: func(x.clone() if writes else x, *rest, **named), x


def _writes(func: Any, options: Any) -> bool:
    """Whether a call changes its first argument; torch.nn.functional hands `inplace` to a mode by name."""
    name = getattr(func, "__name__", "")
    return bool(options.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def linear_layer(backward: Call) -> Rule:
    """The rule of linear layers, convolutions and products with a constant matrix on the right.

    backward: (linear, gradient, x, weight, bias) -> gradient at x; `linear` is the function of the last three.
    """

    def rule(func: Any, args: Any, options: Any) -> Tensor:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {**dict(zip(names, args, strict=False)), **options}
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            return func(x, weight, **given) if bias is None else func(x, weight, bias, **given)

        return ruled(lambda x: linear(x, weight, bias), lambda _, g, x: backward(linear, g, x, weight, bias), x)

    return rule


class Ruled(Function):
    """The value of `call(*inputs)`, whose gradient goes to the inputs as `backward` says.

    backward: (call, gradient of the value, *inputs as they were) -> gradient of the input, or a tuple of one for each.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, backward: Call, *inputs: Tensor) -> Tensor:
        """The value, and copies of the inputs, which others may write into."""
        ctx.rule = backward if backward is kept else partial(backward, call)
        ctx.save_for_backward(*(() if backward is kept else [x.clone() for x in inputs]))
        value: Tensor = call(*inputs)
        own = not value._is_view() and all(value is not x for x in inputs)
        return value if own else value.clone()  # others may write into it, too

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """What the rule makes of the gradient."""
        found = ctx.rule(gradients[0], *ctx.saved_tensors)
        return None, None, *(found if isinstance(found, tuple) else (found,))


ruled: Callable[..., Tensor] = Ruled.apply


def kept(gradient: Tensor) -> Tensor:
    """What arrives passes on as it is, whatever the input was."""
    return gradient


def derivative(call: Call, x: Tensor) -> Tensor:
    """f'(x) of an elementwise function."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(call(x).sum(), x)[0]
