"""The state of a training in one safetensors file, which holds tensors and JSON and can hold no code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from attncompare.errors import ResultFormatError
from attncompare.storage.folder import write_atomically

Row = dict[str, float]
ABOUT = "attncompare"
OPTIMIZER = "optimiser/"  # as 0.1 wrote it: with another prefix its trainings would resume without this state


@dataclass
class State:
    """Where a training is: weights, the state_dict of each optimizer, and the rows reported so far.

    identity: what the training is of; a checkpoint of something else is not gone on with. best: weights of the best row.
    """

    identity: str
    model: Mapping[str, Tensor]
    optimizers: list[dict[str, Any]]
    rows: list[Row] = field(default_factory=list)
    best: Mapping[str, Tensor] = field(default_factory=dict)


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def save_state(path: Path, state: State) -> None:
    """Write the whole state or nothing."""
    from safetensors.torch import save

    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for number, optimizer in enumerate(state.optimizers):
        for index, kept in optimizer["state"].items():
            tensors |= {f"{OPTIMIZER}{number}/{index}/{name}": tensor for name, tensor in kept.items()}
    groups = [optimizer["param_groups"] for optimizer in state.optimizers]
    about = {"identity": state.identity, "rows": state.rows, "groups": groups}
    write_atomically(path, save(stored(tensors), {ABOUT: json.dumps(about)}))


def load_state(path: Path) -> State:
    """Read a state; ResultFormatError for a file that is none."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()[ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # readers raise anything on a damaged file
        raise ResultFormatError(f"checkpoint {path} cannot be read: {error}; delete it to start over") from error
    optimizers: list[dict[str, Any]] = [{"state": {}, "param_groups": groups} for groups in about["groups"]]
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            _, number, index, key = name.split("/", 3)
            optimizers[int(number)]["state"].setdefault(int(index), {})[key] = tensor
    model, best = (
        {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("model/", "best/")
    )
    return State(about["identity"], model, optimizers, about["rows"], best)
