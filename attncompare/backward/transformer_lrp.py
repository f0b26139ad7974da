"""Layer-wise relevance propagation through a transformer (Chefer et al., arXiv:2012.09838), as a backward pass.

What arrives at a tensor is its relevance, not its gradient. Rules: equations 3 to 8 with alpha = 1 and beta = 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from attncompare.backward.attn_lrp import signed_gradient
from attncompare.backward.engine import Call, Rules, constant, growing, kept, linear_layer, one_input, plain, ruled
from attncompare.errors import UnsupportedMethodError
from attncompare.inspection import functions as f

EPSILON = 1e-15
KEEPING = f.spellings("relu gelu silu tanh erf softmax layer_norm group_norm rms_norm batch_norm") | f.COPIES


def transformer_lrp() -> Rules:
    """The paper's rules. A function that has none is refused, so that no relevance passes it unnoticed."""
    table = {
        f.MOVES: plain,  # the gradient of a move is the move of relevance
        KEEPING: one_input(kept),
        f.GATES: constant,  # relevance goes to what a gate multiplies, as in x sigmoid(1.702 x)
        f.LINEAR | f.CONVOLUTION: linear_layer(positive_contributions),
        f.MATRIX_PRODUCTS: matrix_product,
        f.MEANS: shares,
        f.SUMS: residual,
        f.PRODUCTS | f.WRITTEN_PRODUCTS | f.QUOTIENTS: scaled,
    }
    return Rules("relevance", table, otherwise=refused)


def refused(func: Any, args: Any, options: Any) -> Any:
    """No rule: fine when nothing comes out that relevance should flow through."""
    value = func(*args, **options)
    if growing((value,)):
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        raise UnsupportedMethodError(f"relevance has no rule for {name}; the paper's cover ViTs of linear layers")
    return value


def positive_contributions(linear: Call, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Inputs get relevance as x w > 0 is large (z+): gamma = infinity, whatever the output's sign, nothing for the bias."""
    weights = weight.clamp(min=0), weight.clamp(max=0)
    return x * signed_gradient(linear, x, weights, None, lambda output: _share(relevance, output))


def matrix_product(func: Any, args: Any, options: Any) -> Any:
    """A product with a constant matrix is a linear layer; two activations get their shares."""
    if len(growing(args)) > 1 or func is torch.einsum:
        return shares(func, args, options)
    return (linear_layer(positive_contributions) if growing(args[:1]) else refused)(func, args, options)


def shares(func: Any, args: Any, options: Any) -> Any:
    """A product of activations, or a mean: the tensors among the arguments are the parts."""
    if growing(options.values()) or any(growing(x) for x in args if isinstance(x, list | tuple)):
        return refused(func, args, options)
    grows = [bool(growing((x,))) for x in args]
    constants = [x for x, part in zip(args, grows, strict=True) if not part]

    def call(*parts: Tensor) -> Any:
        left, rest = iter(parts), iter(constants)
        return func(*(next(left if part else rest) for part in grows), **options)

    return ruled(call, contributions, *growing(args))


def contributions(call: Call, relevance: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """The inputs of a multilinear call get equal shares, and their places z_i / Z of those."""
    given = [part.detach().requires_grad_(True) for part in parts]
    with torch.enable_grad():
        output = call(*given)
    found = torch.autograd.grad(output, given, _share(relevance, output.detach()) / len(parts))
    return tuple(part * gradient for part, gradient in zip(parts, found, strict=True))


def residual(func: Any, args: Any, options: Any) -> Any:
    """A sum: two activations get shares; what is added to a constant keeps its relevance."""
    if options:
        return refused(func, args, options)
    if len(growing(args)) == 1:
        return _kept(torch.add, args)
    return ruled(torch.add, sum_shares, *torch.broadcast_tensors(*args))  # type: ignore[no-untyped-call]


def sum_shares(call: Call, relevance: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Shares of each place, scaled so that the parts get of an image's relevance as much as their sums are large."""
    share, axes = _share(relevance, sum(parts)), tuple(range(1, relevance.ndim))
    placed = [part * share for part in parts]
    sums = [part.sum(axes, keepdim=True) for part in placed]
    size, whole = sum(one.abs() for one in sums), relevance.sum(axes, keepdim=True)
    return tuple(part * _share(_share(s.abs(), size) * whole, s) for part, s in zip(placed, sums, strict=True))


def scaled(func: Any, args: Any, options: Any) -> Any:
    """An activation times, or divided by, a constant keeps its relevance."""
    if len(growing(args)) > 1 or options or (func in f.QUOTIENTS and not growing(args[:1])):
        return refused(func, args, options)
    return _kept(torch.div if func in f.QUOTIENTS else torch.mul, args)


def _kept(operation: Call, args: Any) -> Tensor:
    """The one activation among the arguments keeps the relevance of the value, and none of the arguments is written into."""
    with torch.no_grad():
        value = operation(*args)
    return ruled(lambda x: value, kept, growing(args)[0].expand_as(value))


def _share(relevance: Tensor, output: Any) -> Tensor:
    """R / Z, 0 where nothing came out."""
    return torch.where(output == 0, 0, relevance / (output + EPSILON * output.sign()))
