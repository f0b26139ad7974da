"""The same model with more and more of what it learned destroyed, from the output downward."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

STAGES = 8


def stages_of(model: nn.Module, count: int = STAGES) -> list[list[nn.Parameter]]:
    """The model's parameters in at most `count` groups of as many modules each, the last modules first.

    Modules stand in the order in which the model defines them; one without parameters of its own does not count, and a
    parameter that several share belongs to the first that is reached.
    """
    seen: set[nn.Parameter] = set()
    owners = []
    for module in reversed(list(model.modules())):
        own = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(own)
        owners += [own] if own else []
    parts = np.array_split(np.arange(len(owners)), min(count, len(owners)) or 1)
    return [[parameter for index in part for parameter in owners[index]] for part in parts]


def shuffle_(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Put the entries of a parameter in random order: what was learned is gone, their distribution is not."""
    with torch.no_grad():
        flat = parameter.detach().cpu().flatten()
        parameter.copy_(flat[torch.randperm(len(flat), generator=generator)].reshape(parameter.shape))


def randomized_maps(model: nn.Module, explain: Callable[[], Tensor], seed: int = 0) -> Iterator[Tensor]:
    """What `explain` gives after each stage; the weights are put back when the iterator ends or is closed."""
    generator = torch.Generator().manual_seed(seed)
    saved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for parameters in stages_of(model):
            for parameter in parameters:
                saved.append((parameter, parameter.detach().clone()))
                shuffle_(parameter, generator)
            forget(model)
            yield explain()
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)
        forget(model)


def forget(model: nn.Module) -> None:
    """Have modules drop what they computed from their weights, such as the attention biases that timm's LeViT keeps.

    What is kept for evaluation alone goes when a module is put into training mode; only those that have a say in that, by a
    `train` of their own, are asked.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        if type(module).train is not nn.Module.train:
            module.train(True)
            module.train(False)
    for module, mode in modes.items():
        module.training = mode
