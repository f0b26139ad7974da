"""The state of a model and of the process as a recording pass needs it, and as it was before when the pass is over."""

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

LOCK = threading.RLock()
"""Held while a model is probed, captured or explained: hooks, modes and PyTorch's switches belong to the whole process."""


def _set_modes(training: Mapping[nn.Module, bool], required: Mapping[nn.Parameter, bool]) -> None:
    """Set the flags that differ: writing one is slow, and most are as wanted."""
    for module, flag in training.items():
        if module.training != flag:
            module.training = flag
    for parameter, flag in required.items():
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside; training flags, requires_grad and all RNG states restored after."""
    python, numpy = random.getstate(), np.random.get_state()  # libraries draw from them when they are first imported
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    rng = torch.get_rng_state()
    try:
        _set_modes(dict.fromkeys(training, False), dict.fromkeys(required, False))
        yield
    finally:
        _set_modes(training, required)
        torch.set_rng_state(rng)
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def disable_mha_fastpath() -> Iterator[None]:
    """Switch off the encoder fast path, which bypasses every Python-level attention call; restored on exit."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def frozen_eval(model: nn.Module, *, graph: bool) -> Iterator[None]:
    """A model as a recording pass runs it, by one thread at a time, with or without a graph; all is restored after."""
    with (
        LOCK,
        torch.inference_mode(False),
        torch.set_grad_enabled(graph),
        preserve_state(model),
        disable_mha_fastpath(),
    ):
        yield


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters live; the CPU for a module without any."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """What is drawn inside depends on the seed alone, and leaves the generator of the process as it was.

    Only the CPU's generator is seeded, as only that is restored: `torch.manual_seed` seeds those of all devices.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))  # a NumPy integer too
        yield
