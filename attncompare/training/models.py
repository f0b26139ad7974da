"""The model of a training: the tutorial's small CNN, or any that load_model knows with a new last layer."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from attncompare.errors import UnsupportedModelError, reason_of
from attncompare.models.adapter import ModelSource
from attncompare.models.load import load_source
from attncompare.models.preprocessing import Preprocessing
from attncompare.modules.insertion import insert
from attncompare.state import preserve_state
from attncompare.training.spec import TUTORIAL_CNN, TrainSpec

CHANNELS = (32, 64, 128)
SIDE = 64
GATES_SEED = 7_919  # added to the seed: the gates' weights are drawn apart from those of the layers they share


def tutorial_cnn(classes: int) -> nn.Module:
    """Three blocks (3x3 convolution, batch norm, ReLU, max pooling), global average pooling, one linear layer.

    >>> tutorial_cnn(10)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(pairwise((3, *CHANNELS)), start=1):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        parts[f"block{number}"] = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(CHANNELS[-1], classes)}
    return nn.Sequential(parts)


def build(spec: TrainSpec, class_names: Sequence[str]) -> ModelSource:
    """The model of a spec with its first weights; layers with and without squeeze-and-excitation start alike.

    Raises UnknownNameError and UnsupportedModelError as load_model and insert do.
    """
    with torch.random.fork_rng(devices=[]):  # of the CPU's generator, so no other may be seeded
        torch.default_generator.manual_seed(spec.seed)
        source = _plain(spec, len(class_names))
        if spec.squeeze_excite is not None:
            torch.default_generator.manual_seed(spec.seed + GATES_SEED)
            gates, size = spec.squeeze_excite, source.preprocessing.size
            source = replace(source, module=insert(source.module, gates.layers, gates.reduction, size=size))
    return replace(source, class_names=tuple(class_names), overrides={})


def _plain(spec: TrainSpec, classes: int) -> ModelSource:
    if spec.model == TUTORIAL_CNN:
        side = spec.size or SIDE
        return ModelSource(TUTORIAL_CNN, tutorial_cnn(classes), Preprocessing((side, side), (0.5,) * 3, (0.25,) * 3))
    source = load_source(spec.model, seed=spec.seed)
    if spec.size:
        source = replace(source, preprocessing=replace(source.preprocessing, size=(spec.size,) * 2))
    _replace_head(source, classes)
    return source


def _replace_head(source: ModelSource, classes: int) -> None:
    """Give the module that makes the logits, a linear layer or a convolution, as many outputs as there are classes."""
    ran: list[tuple[str, int]] = []
    with preserve_state(source.module), torch.no_grad(), ExitStack() as stack:
        for path, module in source.module.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
                noted = (path, width)
                stack.callback(module.register_forward_hook(lambda m, i, o, noted=noted: ran.append(noted)).remove)
        try:
            outputs = source.output_fn(source.module(torch.rand(2, 3, *source.preprocessing.size))).shape[1]
        except Exception as error:  # a model may do anything at a size that it was not made for
            raise UnsupportedModelError(
                f"{source.name} does not run on images of {source.preprocessing.size}: {reason_of(error)}"
            ) from error
    head = next((path for path, width in reversed(ran) if width == outputs), None)
    if head is None:
        raise UnsupportedModelError(f"{source.name} has no linear layer of {outputs} outputs to be replaced")
    old, (around, _, name) = source.module.get_submodule(head), head.rpartition(".")
    if outputs == classes:
        return
    bias = getattr(old, "bias", None) is not None
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes, bias=bias)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, classes, 1, bias=bias)
    setattr(source.module.get_submodule(around), name, new)
