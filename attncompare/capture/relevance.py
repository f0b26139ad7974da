"""Layer-wise relevance propagation through a transformer (Chefer et al., arXiv:2012.09838), as a backward pass.

While the mode is active every function between the blocks hands relevance down instead of gradients: what arrives at a
tensor in `torch.autograd.grad` is its relevance. Rules are those of the paper's equations 3 to 8 with alpha = 1 and
beta = 0: positive contributions in linear layers, shares of the output in products and sums, nothing changed by
normalisation, softmax and activations. A function without a rule is refused, so no relevance passes it unnoticed.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode, resolve_name

from attncompare.capture.backward_rules import GATES, out_of_place
from attncompare.capture.capture import Capture
from attncompare.capture.multi_head import multi_head_attention
from attncompare.capture.recorders import AttentionRecorder, Need
from attncompare.capture.state import disable_mha_fastpath
from attncompare.errors import CaptureError, UnsupportedMethodError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals import Signal

EPSILON = 1e-15
LOGITS_TOLERANCE = 1e-5
Call = Callable[..., Any]

KEEPS = frozenset(
    {
        F.layer_norm, torch.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, F.gelu, F.relu, torch.relu, F.silu,
        F.softmax, torch.softmax, Tensor.softmax, F.dropout, F.tanh, torch.tanh, torch.erf, Tensor.clone,
        Tensor.contiguous, Tensor.to, Tensor.float, Tensor.type_as,
    }
)  # fmt: skip
"""Functions of one tensor through which relevance passes as it is."""

MOVES = frozenset(
    {
        Tensor.reshape, Tensor.view, Tensor.permute, Tensor.transpose, Tensor.flatten, Tensor.unflatten, Tensor.unbind,
        Tensor.chunk, Tensor.split, Tensor.__getitem__, Tensor.expand, Tensor.expand_as, Tensor.squeeze,
        Tensor.unsqueeze, Tensor.swapaxes, Tensor.movedim, torch.reshape, torch.permute, torch.transpose, torch.flatten,
        torch.unbind, torch.chunk, torch.split, torch.cat, torch.stack, torch.squeeze, torch.unsqueeze, torch.swapaxes,
        Tensor.select, Tensor.narrow, Tensor.index_select, torch.index_select, Tensor.T.__get__, Tensor.mT.__get__,  # type: ignore[attr-defined]
    }
)  # fmt: skip
"""Functions that only move values: the gradient of a move is the move of relevance."""

PRODUCTS = frozenset({Tensor.matmul, Tensor.__matmul__, torch.matmul, Tensor.bmm, torch.bmm, torch.einsum})
SUMS = frozenset({Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.add_, torch.add})
SCALINGS = frozenset(
    {
        Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, Tensor.mul_, torch.mul, Tensor.div,
        Tensor.__truediv__, Tensor.div_, torch.div,
    }
)  # fmt: skip
MEANS = frozenset({Tensor.mean, torch.mean, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.avg_pool2d})


def _share(relevance: Tensor, output: Tensor) -> Tensor:
    """R / Z, 0 where nothing came out."""
    return torch.where(output == 0, 0, relevance / (output + EPSILON * output.sign()))


class _Kept(Function):
    """The function's value forward, its output's relevance backward."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor) -> Tensor:
        value: Tensor = call(x)
        return value.view_as(value) if value is x else value

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        return None, relevance[0]


class _Contributions(Function):
    """Each input's part of the output, z_i / Z, of what reaches the output; `parts` are the inputs of a multilinear call."""

    @staticmethod
    def forward(ctx: Any, call: Call, *parts: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*parts)
        return call(*parts)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        parts = [part.detach().requires_grad_(True) for part in ctx.saved_tensors]
        with torch.enable_grad():
            output = ctx.call(*parts)
        found = torch.autograd.grad(output, parts, _share(relevance[0], output.detach()) / len(parts))
        return None, *(part.detach() * gradient for part, gradient in zip(parts, found, strict=True))


class _Positive(Function):
    """A linear call: relevance goes to inputs in proportion to their positive contributions x w > 0 (z+ rule)."""

    @staticmethod
    def forward(ctx: Any, linear: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.linear = linear
        ctx.save_for_backward(x, weight)
        value: Tensor = linear(x, weight, bias)
        return value.clone() if value._is_view() else value  # a view could not be written into

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        positive, negative = x.clamp(min=0).requires_grad_(True), x.clamp(max=0).requires_grad_(True)
        with torch.enable_grad():
            output = ctx.linear(positive, weight.clamp(min=0), None) + ctx.linear(negative, weight.clamp(max=0), None)
        up, down = torch.autograd.grad(output, [positive, negative], _share(relevance[0], output.detach()))
        return None, positive.detach() * up + negative.detach() * down, None, None


class _Sum(Function):
    """a + b: shares of each place, scaled so that a and b get parts of an image's relevance as their sums are large."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        total = relevance[0]
        share = _share(total, sum(ctx.saved_tensors))
        parts = [x * share for x in ctx.saved_tensors]
        axes = tuple(range(1, total.ndim))
        sums = [part.sum(axes, keepdim=True) for part in parts]
        size = sum(one.abs() for one in sums)
        whole = total.sum(axes, keepdim=True)
        return tuple(part * _share(_share(one.abs(), size) * whole, one) for part, one in zip(parts, sums, strict=True))


def _growing(values: Iterable[object]) -> list[Tensor]:
    """The tensors that relevance flows to, those in lists included."""
    return [x for x in _flat(values) if isinstance(x, Tensor) and x.requires_grad]


def _grows(x: object) -> bool:
    """Whether relevance flows to it."""
    return isinstance(x, Tensor) and x.requires_grad


class RelevanceRules(TorchFunctionMode):
    """While active, backward passes carry relevance."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace a function by its rule; refuse one that has none."""
        options = dict(kwargs or {})
        growing = _growing((*args, *options.values()))
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **options)
        if not growing or func in MOVES:
            return func(*args, **options)
        if func in KEEPS:
            return _Kept.apply(out_of_place(func, args[1:], options), args[0])
        if func in GATES:  # relevance goes to what a gate multiplies, as in x sigmoid(1.702 x)
            return out_of_place(func, args[1:], options)(args[0].detach())
        if func in (F.linear, F.conv2d) or (func in PRODUCTS and len(growing) == 1 and func is not torch.einsum):
            return _linear(func, args, options)
        if func in PRODUCTS or func in MEANS:
            return _product(func, args, options)
        if func in SUMS and not options:
            with torch.no_grad():
                value = torch.add(*args)
            growing = [x.expand_as(value) for x in growing]
            return _Kept.apply(lambda x: value, growing[0]) if len(growing) == 1 else _Sum.apply(*growing)
        divides = "div" in getattr(func, "__name__", "")
        if func in SCALINGS and len(growing) == 1 and not options and (_grows(args[0]) or not divides):
            with torch.no_grad():
                value = (torch.div if divides else torch.mul)(*args)
            return _Kept.apply(lambda x: value, growing[0].expand_as(value))
        return self._other(func, args, options)

    @staticmethod
    def _other(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A function without a rule: fine when nothing that relevance should flow through comes out."""
        found = func(*args, **options)
        if _growing((found,)):
            name = resolve_name(func) or getattr(func, "__name__", str(func))
            raise UnsupportedMethodError(f"relevance has no rule for {name}; the paper's cover ViTs of linear layers")
        return found


def _flat(values: Iterable[object]) -> list[object]:
    """The values, those in lists and tuples included."""
    return [x for value in values for x in (_flat(value) if isinstance(value, list | tuple) else [value])]


def _linear(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """A linear layer, a convolution, or the product of an activation with a constant matrix."""
    if func in PRODUCTS:
        x, weight = args
        if not _grows(x):
            raise UnsupportedMethodError("relevance has no rule for a constant matrix times activations")
        return _Positive.apply(lambda x, w, b: x @ w, x, weight, None)  # type: ignore[no-any-return]
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = {**dict(zip(names, args, strict=False)), **options}
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    return _Positive.apply(lambda x, w, b: func(x, w, b, **given), x, weight, bias)  # type: ignore[no-any-return]


def _product(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """A product of two activations, or a mean: the tensors among the arguments are the parts."""
    parts = _growing(args)

    def call(*given: Tensor) -> Any:
        left = iter(given)
        return func(*(next(left) if _grows(x) else x for x in args), **options)

    if any(isinstance(x, list | tuple) and any(map(_grows, x)) for x in args):
        raise UnsupportedMethodError("relevance has no rule for torch.einsum with a list of operands")
    return _Contributions.apply(call, *parts)  # type: ignore[no-any-return]


def attention_relevance(
    adapter: ModelAdapter, images: Tensor, reference: Capture, need: Need
) -> tuple[list[Tensor], float, float]:
    """L x (B,heads,N,N) relevance of the target at each block's attention, and the passes made.

    A class target starts with relevance 1 at its logit; another score with each output's part of it, output x gradient: with
    the gradient alone the relevance of a difference of two logits would cancel on its way down.
    The rules divide by sums that may cancel, so the pass is in float64, on a copy of the model.
    """
    module = copy.deepcopy(adapter.model).double()
    precise = replace(adapter, source=replace(adapter.source, model=module))
    try:
        raw, attention, recorder = _pass(precise, images.double())
    except RuntimeError as error:
        if "dtype" not in str(error) and "Double" not in str(error):
            raise
        raise CaptureError(f"relevance is computed in float64, which {adapter.name} does not allow: {error}") from error
    scores = reference.signals[Need(Signal.SCORES)]
    assert isinstance(scores, Tensor)
    output = raw.detach().float().requires_grad_(True)
    changed = float((reference.scored.outputs(output.detach()) - scores).abs().max())
    if not changed <= LOGITS_TOLERANCE * max(1.0, float(scores.abs().max())):
        raise CaptureError(
            f"relevance rules change the logits of {adapter.name} by {changed:.2g}; its maps would be wrong"
        )
    seed = torch.autograd.grad(reference.scored.score(output).sum(), output)[0]
    if not reference.scored.of_classes:
        seed = seed * output.detach()
    found = torch.autograd.grad(raw, attention, seed.double())
    return recorder.gradients(one.float() for one in found), 1.0, 1.0


def _pass(adapter: ModelAdapter, images: Tensor) -> tuple[Tensor, list[Tensor], AttentionRecorder]:
    """Outputs (B,K) and every block's attention in the graph of one pass under the rules."""
    recorder = AttentionRecorder(adapter, [Need(Signal.ATTENTION_GRADIENTS)])
    first = adapter.model.get_submodule(adapter.structure.token_blocks[0])

    def start(module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].detach().requires_grad_(True), *args[1:])

    with ExitStack() as stack:
        stack.enter_context(disable_mha_fastpath())
        stack.callback(first.register_forward_pre_hook(start).remove)
        stack.enter_context(RelevanceRules())
        stack.enter_context(recorder.active())
        raw = adapter.forward(images)
    return raw, recorder.listed(recorder.blocks), recorder
