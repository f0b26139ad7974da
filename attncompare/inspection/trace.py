"""The traced pass: run a network once on two noise images and note every module call and every attention call."""

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from attncompare.inspection.attention_calls import Recorder, kernel
from attncompare.inspection.calls import BATCH, Arguments, AttentionCall, Call, Note
from attncompare.inspection.functions import ActivationNames
from attncompare.inspection.gates import gate_of
from attncompare.state import device_of, frozen_eval

NOISE_SPREAD, TRIALS = 10.0, 6  # spread of the channels' means, and how many times, when gates are tried on noise


class Network(Protocol):
    """What inspection asks of a model; `models.adapter.ModelSource` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def module(self) -> nn.Module: ...  # noqa: D102

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def embedding(self) -> bool: ...  # noqa: D102

    @property
    def attention(self) -> Recorder: ...  # noqa: D102

    @property
    def overrides(self) -> Mapping[str, object]: ...  # noqa: D102

    def forward(self, images: Tensor) -> Tensor: ...  # noqa: D102


class Watcher:
    """Sees each module of a network before and after it runs."""

    def before(self, path: str, module: nn.Module, arguments: Arguments) -> None:
        """A module is about to run."""

    def after(self, path: str, module: nn.Module, arguments: Arguments, output: object) -> None:
        """A module has run."""

    @contextmanager
    def watching(self, model: nn.Module, *, graph: bool) -> Iterator[None]:
        """Watch a model, frozen and in evaluation mode, with or without an autograd graph."""
        with frozen_eval(model, graph=graph), ExitStack() as stack:
            for path, module in model.named_modules():
                if path:
                    for handle in self._hooks(path, module):
                        stack.callback(handle.remove)
            yield

    def _hooks(self, path: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def enter(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object]) -> None:
            self.before(path, module, Arguments(args, options))

        def leave(module: nn.Module, args: tuple[object, ...], options: Mapping[str, object], output: object) -> None:
            self.after(path, module, Arguments(args, options), output)

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)


class Running(NamedTuple):
    """A module that is running. attentions: how many attention calls there were when it began."""

    path: str
    module: nn.Module
    attentions: int
    input: Note | None


class Trace(Watcher):
    """A pass with two noise images: the logits, and all calls in the order in which the modules finished."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.calls: list[Call] = []
        self.attention: list[AttentionCall] = []
        self.runs: Counter[str] = Counter()
        self._running: list[Running] = []
        self._notes: MutableMapping[Tensor, tuple[int, Note]] = WeakTensorKeyDictionary()
        self._numbers = count()
        with self.watching(network.module, graph=False):
            images = torch.rand(BATCH, 3, *network.size, generator=torch.Generator().manual_seed(0))
            self.images = images.to(device_of(network.module))
            with ActivationNames() as activations, network.attention(self):
                self.logits = network.forward(self.images)
            self.activations = activations.names
            self._find_silent_gates()

    def before(self, path: str, module: nn.Module, arguments: Arguments) -> None:
        """Note what goes in now: the module may write into it."""
        x = arguments.first
        self._running.append(Running(path, module, len(self.attention), None if x is None else self._note(x)))

    def after(self, path: str, module: nn.Module, arguments: Arguments, output: object) -> None:
        """Note the call."""
        began, tensor = self._running.pop(), first_tensor(output)
        if tensor is None:
            return
        # A module that passes on one of several tensors unchanged: others may already have read it when a hook replaces it.
        passed_on = isinstance(output, tuple) and any(tensor is x for x in arguments.tensors)
        x = arguments.inputs[0] if arguments.inputs else None  # gates called by keyword are rare
        gate, steady = gate_of(path, x, tensor, self.calls)
        call = Call(
            path,
            self.runs[path],
            module,
            input=began.input,
            output=self._note(tensor),
            arguments=arguments if len(self.attention) > began.attentions else None,
            gate=None if steady else gate,
            steady=steady,
            direct=isinstance(output, Tensor | tuple) and not passed_on,
        )
        self.runs[path] += 1
        self.calls.append(call)

    def kernel(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Note a fused attention."""
        self.attention.append(AttentionCall(self._innermost(), (*query.shape[:-1], key.shape[-2])))
        return kernel(query, key, value, *args, **kwargs)  # type: ignore[arg-type]

    def softmax(self, probabilities: Tensor) -> Tensor:
        """Note an unfused attention."""
        self.attention.append(AttentionCall(self._innermost(), tuple(probabilities.shape)))
        return probabilities

    def _innermost(self) -> str:
        """The module that is running; a softmax that is a module belongs to the one around it."""
        return next((m.path for m in reversed(self._running) if not isinstance(m.module, nn.Softmax)), "")

    def _note(self, tensor: Tensor) -> Note:
        """The note of a tensor: the same one until something writes into the tensor, then another of the same number."""
        version, (noted, note) = version_of(tensor), self._notes.get(tensor, (-1, None))
        if note is None or noted != version:
            note = Note.of(tensor, next(self._numbers) if note is None else note.number)
            self._notes[tensor] = version, note
        return note

    def _find_silent_gates(self) -> None:
        """Look for gates once more, on noise, where the pass could not show them.

        Either the layer saw nothing but zeros (behind a norm that starts at zero), or the gates did not differ between the
        images: then it is a learned scale, or a gate whose few hidden units (ReLU) were zero for both.
        """
        for call in list(self.calls):
            x = call.input
            if x is None or len(x.shape) != 4 or x.shape != call.output.shape:
                continue
            if call.output.blank and any(True for _ in call.module.children()):
                call.gate = self._gate_on(call, torch.rand(x.shape))
            elif call.steady:
                generator = torch.Generator().manual_seed(0)
                offsets = NOISE_SPREAD * torch.randn(TRIALS, *x.shape[:2], 1, 1, generator=generator)
                trials = (self._gate_on(call, torch.rand(x.shape) + offset) for offset in offsets)
                call.gate = next((gate for gate in trials if gate is not None), None)

    def _gate_on(self, call: Call, x: Tensor) -> str | None:
        """The gate that a module shows on another input; the calls that the hooks note meanwhile are dropped."""
        before, runs = len(self.calls), self.runs.copy()
        call.module(x.to(self.images))
        last = self.calls[-1]
        del self.calls[before:]
        self.runs = runs
        return last.gate if last.path == call.path else None

    def call_of(self, path: str) -> Call | None:
        """The first run of a module."""
        return next((call for call in self.calls if call.path == path), None)

    def input_of(self, path: str) -> Note | None:
        """What goes into a module in its first run."""
        call = self.call_of(path)
        return None if call is None else call.input

    def source_of(self, path: str) -> str | None:
        """The module whose output goes into a module as it is, where that output is a batch."""
        x = self.input_of(path)
        if x is None or x.shape[0] != BATCH:
            return None
        return next((c.path for c in self.calls if c.output.number == x.number and c.direct), None)

    def outermost(self, call: Call) -> str:
        """Of the modules that return this very tensor the outermost, and of several as far out the last to touch it.

        A module that runs once is preferred: a hook keeps the last of several runs (VOLO's dropout before both its heads).
        """
        same = [
            (self.runs[c.path] > 1, c.path.count("."), -order, c.path)
            for order, c in enumerate(self.calls)
            if c.output.number == call.output.number and c.direct
        ]
        return min(same)[3]


def version_of(tensor: Tensor) -> int:
    """How often something was written into a tensor, as far as that is counted."""
    return 0 if tensor.is_inference() else tensor._version


def first_tensor(output: object) -> Tensor | None:
    """The tensor of floating-point numbers that a module returns: alone, first of several, or as its main output."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    for name in ("last_hidden_state", "logits"):
        if isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    return output if isinstance(output, Tensor) and output.is_floating_point() else None
