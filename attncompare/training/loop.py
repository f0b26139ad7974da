"""The small training loop: seeded, resumable after a kill, checkpoints that hold no code."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Batches = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingSpec:
    """What decides the weights besides data and architecture.

    learning_rate: peak of a linear warm-up and cosine decay to 1 %. precision: "fp32" or "bf16" (autocast).
    schedule_steps: length of the decay, where the training stops before its end.
    optimiser: "adamw", or "muon" for the matrices of the blocks with AdamW for the rest (torch >= 2.9).
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    label_smoothing: float = 0.0
    precision: str = "fp32"
    optimiser: str = "adamw"
    seed: int = 0
    schedule_steps: int | None = None


def learning_rate(step: int, spec: TrainingSpec) -> float:
    """Learning rate at a step: linear warm-up, then cosine decay to 1 % of the peak."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    steps = spec.schedule_steps or spec.steps
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def build_optimisers(model: nn.Module, spec: TrainingSpec) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for hidden matrices and AdamW for the rest; biases, norms, tokens and embeddings do not decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    flat = [p for name, p in named if p.ndim < 2 or "pos_embed" in name or "token" in name]
    hidden = [p for name, p in named if p.ndim == 2 and "blocks." in name] if spec.optimiser == "muon" else []
    taken = {id(p) for p in (*flat, *hidden)}
    others = [p for _, p in named if id(p) not in taken]
    groups = [{"params": others, "weight_decay": spec.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(0.9, 0.98))]
    if hidden:
        rate, decay = spec.learning_rate, spec.weight_decay
        optimisers.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimisers


def _save(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(
    model: nn.Module,
    batches: Batches,
    spec: TrainingSpec,
    checkpoint: Path,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    every: int = 500,
) -> Iterator[dict[str, float]]:
    """Train in place; yield a row (step, loss, accuracy, seconds) every `every` steps and at the end.

    batches(step) returns (images in [0, 1] already normalised as the model wants them, labels) and must depend on the
    step alone: that, and the state saved in `checkpoint`, is what lets a killed training go on as if nothing happened.
    """
    optimisers = build_optimisers(model, spec)
    loss_function = nn.CrossEntropyLoss(label_smoothing=spec.label_smoothing)
    start, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if json.loads(state["spec"]) != asdict(spec):
            raise ValueError(f"{checkpoint} belongs to another spec {state['spec']}; delete it to start over")
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        start, spent = int(state["step"]), float(state["seconds"])
    if start >= spec.steps:
        yield {
            "step": start,
            "loss": float("nan"),
            "accuracy": validate(model) if validate else float("nan"),
            "seconds": spent,
        }
    began, running = time.perf_counter(), float("nan")
    for step in range(start, spec.steps):
        model.train()
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, spec)
        images, labels = batches(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = model(images)
        loss = loss_function(logits.float(), labels)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == spec.steps:
            seconds = spent + time.perf_counter() - began
            states = [optimiser.state_dict() for optimiser in optimisers]
            state = {"model": model.state_dict(), "optimisers": states, "step": step + 1}
            _save(checkpoint, {**state, "seconds": seconds, "spec": json.dumps(asdict(spec))})
            accuracy = validate(model) if validate else float("nan")
            yield {"step": step + 1, "loss": running, "accuracy": accuracy, "seconds": seconds}
