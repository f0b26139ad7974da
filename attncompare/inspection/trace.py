"""One probing pass: every module call and every attention call of a model, with what is needed to find its structure."""

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from attncompare.inspection.attention_calls import AttentionCalls, Recorder, kernel
from attncompare.inspection.functions import ActivationNames
from attncompare.state import device_of, disable_mha_fastpath, preserve_state

BATCH = 2  # images in the probing pass
TOLERANCE = 1e-4
LOUD, TRIALS = 10.0, 6  # spread of the channels' means, and how often, when gates are tried on noise


class Network(Protocol):
    """What inspection asks of a model; `models.adapter.ModelSource` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def model(self) -> nn.Module: ...  # noqa: D102

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def embedding(self) -> bool: ...  # noqa: D102

    @property
    def attention(self) -> Recorder: ...  # noqa: D102

    @property
    def overrides(self) -> Mapping[str, object]: ...  # noqa: D102

    def forward(self, images: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Note:
    """What is kept of a tensor: to hold every one of them would take the memory of training.

    number: which tensor it was; another for every tensor. varies: whether it differs between the two images. blank: whether
    it is zero. values: the tensor itself where it holds one vector per image. marks: (B,N) of a sequence of tokens, one mix
    of the channels of each, by which tokens are told apart.
    """

    shape: torch.Size
    number: int
    varies: bool = False
    blank: bool = False
    values: Tensor | None = None
    marks: Tensor | None = None


@dataclass
class Call:
    """One run of a module: its path, which of its runs, what went in and what came out.

    inputs, options: all that went in, of modules in which attention ran; empty for others. gate: the path of the inner
    module whose output is the ratio of output to input. steady: that ratio did not differ between the two images. direct:
    whether the output is the tensor itself (or a tuple that starts with it), so that a hook can replace it.
    """

    path: str
    run: int
    module: nn.Module
    fed: Note | None
    output: Note
    inputs: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    gate: str | None = None
    steady: bool = False
    direct: bool = True

    @property
    def given(self) -> Tensor | None:
        """The first tensor that went in, where inputs are kept."""
        return first_input(self.inputs, self.options)


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


class Running(NamedTuple):
    """A module that is running. attended: how many attention calls there were when it began."""

    path: str
    module: nn.Module
    attended: int
    fed: Note | None


@dataclass
class Trace:
    """Everything one probing pass saw, in the order in which the modules finished."""

    images: Tensor
    recorder: Recorder = AttentionCalls
    calls: list[Call] = field(default_factory=list)
    attention: list[AttentionCall] = field(default_factory=list)
    logits: Tensor | None = None
    running: list[Running] = field(default_factory=list)
    activations: set[str] = field(default_factory=set)
    runs: Counter[str] = field(default_factory=Counter)
    noted: MutableMapping[Tensor, tuple[int, Note]] = field(default_factory=WeakTensorKeyDictionary)
    numbers: Iterator[int] = field(default_factory=count)

    def note(self, tensor: Tensor) -> Note:
        """What is kept of a tensor; the same note until something writes into it."""
        version, known = version_of(tensor), self.noted.get(tensor)
        if known is None or known[0] != version:
            known = version, _note(tensor, next(self.numbers) if known is None else known[1].number)
            self.noted[tensor] = known
        return known[1]

    def where(self) -> str:
        """The module that is running; a softmax that is a module belongs to the one around it."""
        around = [one.path for one in self.running if not isinstance(one.module, nn.Softmax)]
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


@cache
def _mix(channels: int) -> Tensor:
    return torch.randn(channels, generator=torch.Generator().manual_seed(0))


def marks_of(tokens: Tensor) -> Tensor:
    """(...,C) -> (...): one fixed mix of the channels of each token."""
    return tokens.detach().contiguous() @ _mix(tokens.shape[-1]).to(tokens)


def _note(tensor: Tensor, number: int) -> Note:
    shape = tensor.shape
    if len(shape) < 2 or shape[0] != BATCH or not tensor.numel() or not tensor.is_floating_point():
        return Note(shape, number)
    vector = tensor.numel() == BATCH * max(shape[1:])
    return Note(
        shape,
        number,
        varies=not torch.equal(tensor[0], tensor[1]),
        blank=not bool(tensor.any()),
        values=tensor if vector else None,
        marks=marks_of(tensor) if len(shape) == 3 else None,
    )


def version_of(tensor: Tensor) -> int:
    """How often something was written into a tensor, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


def first_input(inputs: tuple[object, ...], options: Mapping[str, object]) -> Tensor | None:
    """The first tensor that goes into a module, by position or by name."""
    return next((x for x in (*inputs, *options.values()) if isinstance(x, Tensor)), None)


def first_tensor(output: object) -> Tensor | None:
    """The tensor of floating-point numbers that a module returns, alone, first of several or as its main output."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    for name in ("last_hidden_state", "logits"):
        if isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def trace(source: Network) -> Trace:
    """Run the model on two seeded images and note every module call and every attention call."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserve_state(source.model))
        stack.enter_context(disable_mha_fastpath())
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(BATCH, 3, *source.size, generator=generator)
        seen = Trace(images.to(device_of(source.model)), source.attention)
        for path, module in source.model.named_modules():
            if path:
                _watch(stack, seen, path, module)
        with ActivationNames() as names, source.attention(seen):
            seen.logits = source.forward(seen.images)
        seen.activations = names.seen
        _wake_silent_gates(seen)
    return seen


def _watch(stack: ExitStack, seen: Trace, path: str, module: nn.Module) -> None:
    """Note every run of one module, for as long as the stack is open."""

    def enter(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object]) -> None:
        fed = first_input(args, options)  # noted now: the module may write into it
        seen.running.append(Running(path, module, len(seen.attention), None if fed is None else seen.note(fed)))

    def leave(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object], output: object) -> None:
        began, tensor = seen.running.pop(), first_tensor(output)
        if tensor is None:
            return
        attended = len(seen.attention) > began.attended
        # A module that hands on one of several tensors unchanged is no place for a hook: it may have been used before.
        handed_on = isinstance(output, tuple) and any(tensor is x for x in (*args, *options.values()))
        gate, steady = _gate_values(seen, path, args, tensor)
        call = Call(
            path,
            seen.runs[path],
            module,
            fed=began.fed,
            output=seen.note(tensor),
            inputs=args if attended else (),
            options=options if attended else {},
            gate=None if steady else gate,
            steady=steady,
            direct=isinstance(output, Tensor | tuple) and not handed_on,
        )
        seen.runs[path] += 1
        seen.calls.append(call)

    stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)


def _wake_silent_gates(seen: Trace) -> None:
    """Try once more, on noise, layers that saw nothing but zeros (behind a norm that starts at zero), or gates that did not
    differ between the images: a learned scale, or a gate whose few hidden units were all at rest (ReLU) on both.
    """
    for call in list(seen.calls):
        x = call.fed
        if x is None or len(x.shape) != 4 or x.shape != call.output.shape:
            continue
        if call.output.blank and any(True for _ in call.module.children()):
            call.gate = _gate_on(seen, call, torch.rand(x.shape))
        elif call.steady:
            generator = torch.Generator().manual_seed(0)
            offsets = LOUD * torch.randn(TRIALS, *x.shape[:2], 1, 1, generator=generator)
            trials = (_gate_on(seen, call, torch.rand(x.shape) + offset) for offset in offsets)
            call.gate = next((gate for gate in trials if gate is not None), None)


def _gate_on(seen: Trace, call: Call, x: Tensor) -> str | None:
    """The gate values that a module makes of another input; what its hooks, still installed, note of it is dropped."""
    before, runs = len(seen.calls), seen.runs.copy()
    call.module(x.to(seen.images))
    last = seen.calls[-1]
    del seen.calls[before:]
    seen.runs = runs
    return last.gate if last.path == call.path else None


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding at the scale of b, and not all zero."""
    scale = float(b.abs().max())
    return scale > 0 and bool((a - b).abs().max() <= TOLERANCE * scale)


def _gate_values(seen: Trace, path: str, args: tuple[object, ...], output: Tensor) -> tuple[str | None, bool]:
    """The module inside `path` whose output, one value per channel, times the input of `path` is its output.

    And whether the values were the same for both images, as those of a learned scale are.
    """
    x = args[0] if args else None  # gates called by keyword are rare
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape != output.shape or x is output:
        return None, False
    for inner in reversed(seen.calls):
        if not inner.path.startswith(path + "."):
            return None, False
        values = inner.output.values
        if values is None or values.numel() != x.shape[0] * x.shape[1]:
            continue
        if not 0 <= float(values.min()) <= float(values.max()) <= 1:
            continue
        if equal(x * values.reshape(x.shape[0], -1, 1, 1), output):
            return inner.path, torch.equal(values[0], values[1])
    return None, False
