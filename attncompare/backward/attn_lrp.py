"""AttnLRP (arXiv:2402.05602) as gradients: input times gradient is relevance (its section 3.3 and appendix B)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attncompare.backward.engine import Call, Rule, Rules, constant, derivative, growing, linear_layer, one_input, plain
from attncompare.errors import UnsupportedMethodError
from attncompare.inspection import functions as f

ALL_PRODUCTS = f.MATRIX_PRODUCTS | f.spellings("baddbmm") | f.PRODUCTS | f.WRITTEN_PRODUCTS
DIVISORS = f.spellings("var std rsqrt norm") | {torch.linalg.vector_norm}  # of a normalization written by hand


def attn_lrp(conv_gamma: float, linear_gamma: float) -> Rules:
    """AttnLRP; for CNNs the same rules are LRP-gamma.

    A function without a rule keeps its gradient, which is the rule of ReLU, max pooling, softmax and linear layers at
    gamma = 0. A sigmoid is a gate, as in x sigmoid(x): relevance goes to what it multiplies (arXiv:1706.07206).
    """
    table = {
        (f.SMOOTH | f.CLIPPED) - f.spellings("softplus logsigmoid"): one_input(
            value_over_input
        ),  # equation 9; not the two with a pole
        ALL_PRODUCTS: halves,  # equation 7
        f.spellings("scaled_dot_product_attention"): replaced(attention),
        f.spellings("layer_norm"): replaced(layer_norm),  # equation 12, as in the four that follow
        f.spellings("group_norm"): replaced(group_norm),
        f.spellings("rms_norm"): replaced(rms_norm),
        f.spellings("normalize"): replaced(normalize),
        DIVISORS: constant,
        f.GATES: constant,
        f.spellings("glu"): replaced(glu),
        f.CONVOLUTION: gamma_rule(conv_gamma),
        f.LINEAR: gamma_rule(linear_gamma),
    }
    return Rules("AttnLRP", table, otherwise=plain)


def value_over_input(call: Call, gradient: Tensor, x: Tensor) -> Tensor:
    """Relevance passes an activation unchanged: the gradient is multiplied by f(x) / x, by f'(0) at 0."""
    at_zero = derivative(call, torch.zeros_like(x))
    return gradient * torch.where(x == 0, at_zero, call(x) / torch.where(x == 0, 1, x))


def halves(func: Any, args: Any, options: Any) -> Any:
    """Halves to the two activations of a product; a product with constants as it is."""
    parts = growing((*args, *options.values()))
    if len(parts) < 2:
        return func(*args, **options)
    if len(parts) > 2 or growing(options.values()) or not all(isinstance(x, Tensor | str) for x in args):
        raise UnsupportedMethodError("attn_lrp has rules for products of two activations, given one by one")
    shared = [divided(x, 2) if isinstance(x, Tensor) else x for x in args]
    return args[0].copy_(torch.mul(*shared)) if func in f.WRITTEN_PRODUCTS else func(*shared, **options)


def divided(x: Tensor, share: int) -> Tensor:
    """The tensor itself, whose gradient is divided by `share`."""
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient / share)  # type: ignore[no-untyped-call]
    return x


def replaced(formula: Call) -> Rule:
    """The formula in the place of the function: the same value, by functions whose own gradients are the rule."""
    return lambda func, args, options: formula(*args, **options)


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    """A half goes to the values and a half to the weights, of which queries and keys get a half each."""
    return F.scaled_dot_product_attention(divided(query, 4), divided(key, 4), divided(value, 2), *args, **options)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """All goes to what the gate multiplies."""
    return x.chunk(2, dim)[0] * x.chunk(2, dim)[1].detach().sigmoid()


def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: bool) -> Tensor:
    """The standard deviation counts as a constant."""
    axes = tuple(range(-len(tuple(shape)), 0))
    centered = x - x.mean(axes, keepdim=True)
    scaled = centered / (centered.detach().pow(2).mean(axes, keepdim=True) + eps).sqrt()
    return scaled * (1 if weight is None else weight) + (0 if bias is None else bias)


def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: bool) -> Tensor:
    """The standard deviations count as constants."""
    parts, shape = x.reshape(len(x), groups, -1), (1, -1, *(1,) * (x.ndim - 2))
    scaled = layer_norm(parts, parts.shape[-1:], eps=eps).reshape(x.shape)
    return scaled * (1 if weight is None else weight.reshape(shape)) + (0 if bias is None else bias.reshape(shape))


def rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    """The root mean square counts as a constant."""
    axes, eps = tuple(range(-len(tuple(shape)), 0)), torch.finfo(x.dtype).eps if eps is None else eps
    return x / (x.detach().pow(2).mean(axes, keepdim=True) + eps).sqrt() * (1 if weight is None else weight)


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """The norm counts as a constant."""
    return x / torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True).clamp_min(eps)  # type: ignore[no-any-return]


def gamma_rule(gamma: float) -> Rule:
    """LRP-gamma: contributions of the output's sign count 1 + gamma fold. At gamma = 0 it is the layer's own gradient."""

    def backward(linear: Call, gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        value, total = linear(x, weight, bias), torch.zeros_like(x)
        above, below = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
        for here, weights, low, high in ((value > 0, (above, below), 0, None), (value < 0, (below, above), None, 0)):
            constant = None if bias is None else bias + gamma * bias.clamp(low, high)

            def seed(output: Tensor, here: Tensor = here) -> Tensor:
                return torch.where(here, gradient * value / torch.where(here, output, 1), 0)

            total += signed_gradient(linear, x, weights, constant, seed)
        return total

    return linear_layer(backward) if gamma else plain


def signed_gradient(
    linear: Call, x: Tensor, weights: tuple[Tensor, Tensor], bias: Tensor | None, seed: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradient at x of a linear function with one weight for positive inputs and one for negative ones; 0 at 0.

    seed: the function's output -> the gradient that arrives there.
    """
    parts = [x.clamp(min=0).requires_grad_(True), x.clamp(max=0).requires_grad_(True)]
    with torch.enable_grad():
        output = linear(parts[0], weights[0], bias) + linear(parts[1], weights[1], None)
    up, down = torch.autograd.grad(output, parts, seed(output.detach()))
    return torch.where(x > 0, up, torch.where(x < 0, down, 0))
