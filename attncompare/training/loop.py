"""The small training loop: seeded, resumable after a kill, checkpoints that hold no code."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from attncompare.errors import AttnCompareError, SpecError
from attncompare.models.adapter import output_tensor
from attncompare.state import device_of
from attncompare.training.checkpoint import Row, State, load_state, save_state, stored
from attncompare.training.recipes import Recipe

Batches = Callable[[int], tuple[Tensor, Tensor]]


def train(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    checkpoint: Path,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    every: int = 500,
    identity: str = "",
    tick: Callable[[int], None] = lambda step: None,
) -> Iterator[Row]:
    """Train in place; yield a row every `every` steps and at the end, beginning with those of an earlier call.

    batches(step) returns (images as the model wants them, labels) and must depend on the step alone: that, and the state
    saved in `checkpoint`, is what lets a killed training go on as if nothing happened. Row: step, loss (mean since the
    row before), accuracy (of `validate`), learning_rate, seconds and cpu_seconds spent in training steps. identity: what
    else the weights depend on. tick: told the number of every finished step. After the last row the weights are those of
    the last step; the checkpoint also has those of the best accuracy.
    Raises SpecError for a checkpoint of another training, AttnCompareError where the loss is no number any more.
    """
    state = State(f"{recipe!r} {identity}".strip(), model.state_dict(), [])
    optimizers = recipe.optimizers(model)
    if checkpoint.exists():
        state = _resume(checkpoint, state.identity, model, optimizers)
    yield from list(state.rows)
    step = int(state.rows[-1]["step"]) if state.rows else 0
    while step < recipe.steps and not recipe.is_over(state.rows):
        stop, losses = min(recipe.steps, step - step % every + every), 0.0
        wall, processor = time.perf_counter(), time.process_time()
        for number in range(step, stop):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.rate(number, state.rows)
            losses += _step(model, batches(number), optimizers, recipe, number)
            tick(number + 1)
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}
        before = state.rows[-1] if state.rows else dict.fromkeys(spent, 0.0)
        row = {"step": stop, "loss": losses / (stop - step), "learning_rate": recipe.rate(stop - 1, state.rows)}
        row["accuracy"] = validate(model) if validate else float("nan")
        row |= {name: before[name] + value for name, value in spent.items()}
        if validate and row["accuracy"] > max((earlier["accuracy"] for earlier in state.rows), default=-1.0):
            state.best = stored(model.state_dict())
        state.rows.append(row)
        state.model, state.optimizers = model.state_dict(), [one.state_dict() for one in optimizers]
        save_state(checkpoint, state)
        step = stop
        yield row


def _resume(path: Path, identity: str, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> State:
    """Put the weights and the optimizers where the checkpoint left them."""
    state = load_state(path)
    if state.identity.replace("optimiser=", "optimizer=") != identity:  # as 0.1 spelled a recipe
        raise SpecError(f"{path} belongs to another training; choose another folder, or delete it to start over")
    model.load_state_dict(state.model)
    for optimizer, saved in zip(optimizers, state.optimizers, strict=True):
        optimizer.load_state_dict(saved)
        for parameter, kept in optimizer.state.items():  # in the order in memory that a new one would have
            kept |= {n: torch.empty_like(parameter).copy_(v) for n, v in kept.items() if v.shape == parameter.shape}
    return state


def _step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    number: int,
) -> float:
    """One step; returns the loss. What the model draws (dropout) depends on the seed and the number of the step alone."""
    images, labels = batch
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed * 1_000_003 + number)
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = output_tensor(model(images))
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)(logits.float(), labels)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise AttnCompareError(
            f"the loss is {value} at step {number + 1}; lower the learning rate, or check the images"
        )
    model.zero_grad(set_to_none=True)
    loss.backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    for optimizer in optimizers:
        optimizer.step()
    return value
