"""One probing pass: every module call and every attention call of a model, with what is needed to read its anatomy."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attncompare.adapters.base import Anatomy, ModelAdapter, Source
from attncompare.capture.attention import AttentionCalls, kernel, slow_attention_path
from attncompare.capture.backward_rules import ActivationNames
from attncompare.capture.capture import left_as_found

BATCH = 2  # images in the probing pass
TOLERANCE = 1e-4


@dataclass
class Call:
    """One run of a module: its path, what went in and what came out.

    means: the spatial means (B,C) of an output, 4-D as read in NCHW and in NHWC or 3-D as tokens, taken at once: what
    follows may write into the output in place. positive_means: the same of its positive part. gate: the path of the inner
    module whose output is the ratio of output to input. direct: whether the output is the tensor itself (or a tuple that
    starts with it), so that it can be tapped.
    """

    path: str
    module: nn.Module
    inputs: tuple[object, ...]
    options: Mapping[str, object]
    tensor: Tensor
    means: tuple[Tensor, ...] = ()
    positive_means: tuple[Tensor, ...] = ()
    gate: str | None = None
    direct: bool = True

    @property
    def fed(self) -> Tensor | None:
        """The first tensor that went in, by position or by name."""
        return next((x for x in (*self.inputs, *self.options.values()) if isinstance(x, Tensor)), None)


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


@dataclass
class Trace:
    """Everything one probing pass saw, in the order in which the modules finished."""

    calls: list[Call] = field(default_factory=list)
    attention: list[AttentionCall] = field(default_factory=list)
    logits: Tensor | None = None
    images: Tensor | None = None
    running: list[tuple[str, nn.Module]] = field(default_factory=list)
    activations: set[str] = field(default_factory=set)

    def where(self) -> str:
        """The module that is running; a softmax that is a module belongs to the one around it."""
        around = [path for path, module in self.running if not isinstance(module, nn.Softmax)]
        return around[-1] if around else ""

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Note a fused attention."""
        self.attention.append(AttentionCall(self.where(), (*query.shape[:-1], key.shape[-2])))
        return kernel(query, key, value, *args, **kwargs)  # type: ignore[arg-type]

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Note an unfused attention."""
        self.attention.append(AttentionCall(self.where(), tuple(probabilities.shape)))
        return probabilities

    def call_of(self, path: str) -> Call | None:
        """The first run of a module."""
        return next((call for call in self.calls if call.path == path), None)


def _first_tensor(output: object) -> Tensor | None:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    for name in ("last_hidden_state", "logits"):
        if isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    return output if isinstance(output, Tensor) else None


def trace(source: Source) -> Trace:
    """Run the model on two seeded images and note every module call and every attention call."""
    seen = Trace()
    adapter = ModelAdapter(source, Anatomy("cnn", None))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(left_as_found(source.model))
        stack.enter_context(slow_attention_path())
        for path, module in source.model.named_modules():
            if path:
                _watch(stack, seen, path, module)
        with ActivationNames() as names, AttentionCalls(seen):
            generator = torch.Generator().manual_seed(0)
            images = torch.rand(BATCH, 3, *source.preprocessing.size, generator=generator).to(adapter.device)
            seen.images = images.requires_grad_(True)
            seen.logits = adapter.forward(seen.images)
        seen.activations = names.seen
        _wake_silent_gates(seen)
    return seen


def _watch(stack: ExitStack, seen: Trace, path: str, module: nn.Module) -> None:
    """Note every run of one module, for as long as the stack is open."""

    def enter(module: nn.Module, args: object) -> None:
        seen.running.append((path, module))

    def leave(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object], output: object) -> None:
        seen.running.pop()
        tensor = _first_tensor(output)
        if tensor is not None and tensor.is_floating_point():
            with torch.no_grad():
                axes = {4: ((2, 3), (1, 2)), 3: ((1,),)}.get(tensor.ndim, ())
                means = tuple(tensor.mean(over) for over in axes)
                positive = tuple(tensor.clamp(min=0).mean(over) for over in axes)
                gate = _gate_values(seen, path, args, tensor)
            # A module that hands on one of several tensors unchanged is no place to tap it: it may have been used before.
            handed_on = isinstance(output, tuple) and any(tensor is x for x in (*args, *options.values()))
            direct = isinstance(output, Tensor | tuple) and not handed_on
            seen.calls.append(Call(path, module, args, options, tensor, means, positive, gate, direct))

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)


def _wake_silent_gates(seen: Trace) -> None:
    """Try layers that saw nothing but zeros (behind a norm that starts at zero) once more, on noise.

    Their hooks are still installed: what they note of the trial is read and then dropped.
    """
    for call in list(seen.calls):
        x = call.inputs[0] if call.inputs else None
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape != call.tensor.shape:
            continue
        # By its means: the tensor itself may have been written into since.
        if not call.means[0].any() and any(True for _ in call.module.children()):
            before = len(seen.calls)
            with torch.no_grad():
                call.module(torch.rand(x.shape, device=x.device))
            call.gate = seen.calls[-1].gate if seen.calls[-1].path == call.path else None
            del seen.calls[before:]


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding at the scale of b, and not all zero."""
    scale = float(b.abs().max())
    return scale > 0 and bool((a - b).abs().max() <= TOLERANCE * scale)


def _gate_values(seen: Trace, path: str, args: tuple[object, ...], output: Tensor) -> str | None:
    """The module inside `path` whose output, one value per channel, times the input of `path` is its output."""
    x = args[0] if args else None  # gates called by keyword are rare
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape != output.shape or x is output:
        return None
    for inner in reversed(seen.calls):
        if not inner.path.startswith(path + "."):
            return None
        values = inner.tensor
        per_channel = values.numel() == x.shape[0] * x.shape[1] and values.shape[0] == x.shape[0]
        # The gates of two images differ (a learned scale's do not) and lie in [0, 1].
        if (
            not per_channel
            or torch.equal(values[0], values[1])
            or not 0 <= float(values.min()) <= float(values.max()) <= 1
        ):
            continue
        if equal(x * values.reshape(x.shape[0], -1, 1, 1), output):
            return inner.path
    return None
