"""Backward rules of AttnLRP and LRP-gamma, so that input times gradient is relevance."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from attncompare.capture.attention import kernel
from attncompare.capture.backward_rules import CLIPPED, GATES, SMOOTH, Call, Ruled, Rules, derivative, out_of_place
from attncompare.errors import UnsupportedMethodError


class AttentionRules(Rules):
    """AttnLRP (arXiv:2402.05602) as gradients: input times gradient is relevance (its section 3.3 and appendix B).

    Activations pass back value / input (equation 9), products halves to each factor (equation 7), normalisation what it
    would with its divisor fixed (equation 12); linear layers follow LRP-gamma, which with gamma = 0 is the plain gradient.
    ReLU, max pooling, softmax and linear layers at gamma = 0 need no rule: their gradient is it. A sigmoid is a gate and
    counts as a constant: relevance goes to what it multiplies (Arras et al., arXiv:1706.07206), as in x sigmoid(1.702 x).
    """

    def __init__(self, conv_gamma: float, linear_gamma: float) -> None:
        passing = (SMOOTH | CLIPPED) - {F.softplus, F.logsigmoid}  # value / input has a pole at 0
        super().__init__("AttnLRP", dict.fromkeys(passing, _identity))
        self.gamma = {F.linear: linear_gamma, F.conv2d: conv_gamma}

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Give a function its rule."""
        options = dict(kwargs or {})
        if func in GATES:
            return out_of_place(func, args[1:], options)(args[0].detach())
        if func in (F.layer_norm, torch.layer_norm):
            return _fixed_divisor(*args[:5], **options)
        if func in (F.group_norm, torch.group_norm):
            return _fixed_group_divisor(*args[:5], **options)
        if func is F.rms_norm:
            return _fixed_root(*args, **options)
        if func in DIVISORS:
            return func(*args, **options).detach()
        if func is F.normalize:
            return _fixed_length(*args, **options)
        if func is F.glu:
            value, gate = args[0].chunk(2, dim=args[1] if len(args) > 1 else options.get("dim", -1))
            return value * gate.detach().sigmoid()
        if func in PRODUCTS or func in WRITTEN_PRODUCTS:
            return self._product(func, args, options)
        if self.gamma.get(func):
            return _gamma_rule(func, args, options, self.gamma[func])
        return super().__torch_function__(func, types, args, options)

    @staticmethod
    def _product(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Halves to the two activations of a product; a product with constants as it is."""
        growing = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
        if len(growing) < 2:
            return func(*args, **options)
        if len(growing) > 2 or not all(isinstance(x, Tensor | str) for x in args):
            raise UnsupportedMethodError("attn_lrp has rules for products of two activations, given one by one")
        halves = [divided(x, 2) if isinstance(x, Tensor) and x.requires_grad else x for x in args]
        return args[0].copy_(torch.mul(*halves)) if func in WRITTEN_PRODUCTS else func(*halves, **options)

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        """Fused attention: a half at the values and at the weights, a half of that at queries and keys."""
        query, key, value = divided(query, 4), divided(key, 4), divided(value, 2)
        return kernel(query, key, value, *args, **options)


PRODUCTS = frozenset(
    {
        Tensor.matmul, Tensor.__matmul__, torch.matmul, Tensor.bmm, torch.bmm, Tensor.mul, Tensor.__mul__, torch.mul,
        torch.einsum, torch.baddbmm, Tensor.baddbmm,
    }
)  # fmt: skip
WRITTEN_PRODUCTS = frozenset({Tensor.mul_, Tensor.__imul__})
DIVISORS = frozenset(
    {
        torch.var, Tensor.var, torch.std, Tensor.std, torch.rsqrt, Tensor.rsqrt, torch.norm, Tensor.norm,
        torch.linalg.vector_norm,
    }
)  # fmt: skip
"""What a normalisation written by hand divides by: it counts as a constant."""


def _fixed_root(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """RMS norm whose root mean square counts as a constant."""
    axes = tuple(range(-len(tuple(shape)), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = x / (x.detach().pow(2).mean(axes, keepdim=True) + eps).sqrt()
    return scaled if weight is None else scaled * weight


def _fixed_length(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """F.normalize whose norm counts as a constant."""
    length: Tensor = torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True)
    return x / length.clamp_min(eps)


def _fixed_group_divisor(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group norm whose standard deviations count as constants."""
    parts = x.reshape(len(x), groups, -1)
    scaled = _fixed_divisor(parts, parts.shape[-1:], eps=eps).reshape(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scaled = scaled if weight is None else scaled * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


def divided(x: Tensor, share: int) -> Tensor:
    """The tensor itself, whose gradient is divided by `share`."""

    def rule(x: Tensor, value: Tensor, call: Call) -> Call:
        return lambda gradient: gradient / share

    found: Tensor = Ruled.apply(lambda x: x.view_as(x), rule, x) if x.requires_grad else x
    return found


def _identity(x: Tensor, value: Tensor, call: Call) -> Call:
    """Relevance passes an activation unchanged: the gradient is multiplied by f(x) / x, by f'(0) at 0."""
    slope = torch.where(x == 0, derivative(torch.zeros_like(x), call), value / torch.where(x == 0, 1, x))
    return lambda gradient: gradient * slope


def _fixed_divisor(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer norm whose standard deviation counts as a constant."""
    axes = tuple(range(-len(tuple(shape)), 0))
    centred = x - x.mean(axes, keepdim=True)
    scaled = centred / (centred.detach().pow(2).mean(axes, keepdim=True) + eps).sqrt()
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


class _Gamma(Function):
    """A linear call; backward LRP-gamma: positive contributions count 1 + gamma fold where the output is positive."""

    @staticmethod
    def forward(ctx: Any, linear: Call, gamma: float, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.linear, ctx.gamma = linear, gamma
        ctx.save_for_backward(x.clone(), weight, bias)  # a later function may write into the input
        value: Tensor = linear(x, weight, bias)
        return value.clone() if value._is_view() else value  # a view could not be written into

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        value = ctx.linear(x, weight, bias)
        up, down = weight + ctx.gamma * weight.clamp(min=0), weight + ctx.gamma * weight.clamp(max=0)
        total = torch.zeros_like(x)
        for sign, with_positive, with_negative in ((1, up, down), (-1, down, up)):
            constant = None
            if bias is not None:
                constant = bias + ctx.gamma * (bias.clamp(min=0) if sign > 0 else bias.clamp(max=0))
            parts = [x.clamp(min=0).requires_grad_(True), x.clamp(max=0).requires_grad_(True)]
            with torch.enable_grad():
                output = ctx.linear(parts[0], with_positive, constant) + ctx.linear(parts[1], with_negative, None)
            here = value * sign > 0
            seed = torch.where(here, gradients[0] * value / torch.where(here, output.detach(), 1), 0)
            found = torch.autograd.grad(output, parts, seed)
            total += torch.where(x > 0, found[0], torch.where(x < 0, found[1], 0))
        return None, None, total, None, None


def _gamma_rule(func: Any, args: tuple[Any, ...], options: dict[str, Any], gamma: float) -> Tensor:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, args, strict=False)), **options}
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    return _Gamma.apply(lambda x, w, b: func(x, w, b, **given), gamma, x, weight, bias)  # type: ignore[no-any-return]
