"""A user's weights into a model: strictly, and without running what a file may hold beside them."""

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from attncompare.errors import AttnCompareError

SHOWN = 3  # names in a message


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights strictly: safetensors, or a pickle that holds nothing but tensors. AttnCompareError says what differs."""
    refused = f"checkpoint {path} cannot be loaded: "
    if not os.path.exists(path):  # unlike Path.exists no error for a name that no file can have
        raise AttnCompareError(f"checkpoint {path} does not exist")
    if not os.path.isfile(path):
        raise AttnCompareError(f"{refused}it is no file")
    try:
        state = _read(path)
    except UnpicklingError as error:
        why = "it is damaged, or holds more than tensors, which could run code; save its state_dict as safetensors"
        raise AttnCompareError(refused + why) from error
    except Exception as error:  # readers raise anything on a damaged file
        raise AttnCompareError(f"{refused}{str(error) or 'it is empty'}") from error
    if why := _differences(model.state_dict(), state):
        raise AttnCompareError(refused + why)
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise AttnCompareError(refused + " ".join(str(error).split())) from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _differences(own: Mapping[str, torch.Tensor], state: Any) -> str:
    """What a checkpoint has otherwise than the model, "" where it fits; integers would be taken for weights as they are."""
    if not isinstance(state, Mapping):
        return f"it holds a {type(state).__name__}; a mapping of names to tensors is needed"
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]  # old files
    unknown = [name for name in state if name not in own]
    both = (("missing", missing), ("not the model's", unknown))
    said = [f"{len(names)} tensors are {what}: {_some(names)}" for what, names in both if names]
    for name in own.keys() & state.keys() if not said else ():
        value = state[name]
        if not isinstance(value, torch.Tensor):
            said.append(f"{name} is a {type(value).__name__} and no tensor")
        elif value.shape != own[name].shape:
            said.append(f"{name} is {tuple(value.shape)}, in the model {tuple(own[name].shape)}")
        elif own[name].is_floating_point() and not value.is_floating_point():
            said.append(f"{name} is {value.dtype}, in the model {own[name].dtype}")
    return "; ".join(sorted(said)[:SHOWN])


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (" ..." if len(names) > SHOWN else "")
