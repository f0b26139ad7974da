"""What decides the weights besides data and architecture: optimizer, learning rate, when to stop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import nn

from attncompare.training.checkpoint import Row


class Recipe(Protocol):
    """A frozen dataclass; its functions see nothing but their arguments, so that a resumed training goes on as it was.

    clip: largest norm of the gradient, or None. precision: "fp32" or "bf16" (autocast).
    """

    @property
    def steps(self) -> int:
        """Most steps."""

    @property
    def seed(self) -> int:
        """Of everything the model draws while it trains."""

    @property
    def label_smoothing(self) -> float:
        """Of the cross-entropy."""

    @property
    def precision(self) -> str:
        """Of the forward pass."""

    @property
    def clip(self) -> float | None:
        """Of the gradient's norm."""

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """New optimizers, in a fixed order."""

    def rate(self, step: int, rows: Sequence[Row]) -> float:
        """The learning rate at a step, after these rows."""

    def is_over(self, rows: Sequence[Row]) -> bool:
        """Whether to stop before the last step."""


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then cosine decay to 1 % of the peak, with AdamW or Muon.

    learning_rate: the peak. schedule_steps: length of the decay, where the training stops before its end.
    optimizer: "adamw", or "muon" for the matrices of the blocks with AdamW for the rest (torch >= 2.9).
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    label_smoothing: float = 0.0
    precision: str = "fp32"
    optimizer: str = "adamw"
    seed: int = 0
    schedule_steps: int | None = None
    clip: ClassVar[float] = 1.0

    def rate(self, step: int, rows: Sequence[Row] = ()) -> float:
        """Learning rate at a step; the rows do not matter."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        steps = self.schedule_steps or self.steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    def is_over(self, rows: Sequence[Row]) -> bool:
        """Never before the last step."""
        return False

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW, or Muon for hidden matrices and AdamW for the rest; biases, norms, tokens, embeddings do not decay."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        flat = [p for name, p in named if p.ndim < 2 or "pos_embed" in name or "token" in name]
        hidden = [p for name, p in named if p.ndim == 2 and "blocks." in name] if self.optimizer == "muon" else []
        taken = {id(p) for p in (*flat, *hidden)}
        others = [p for _, p in named if id(p) not in taken]
        groups = [{"params": others, "weight_decay": self.weight_decay}, {"params": flat, "weight_decay": 0.0}]
        made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))]
        if hidden:
            rate, decay = self.learning_rate, self.weight_decay
            made.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        return made


@dataclass(frozen=True)
class AdamPlateau:
    """Adam; the rate falls by `factor` where the validation accuracy has not risen for more than `patience` rows.

    early_stop: rows without a new best accuracy after which the training ends; None never.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 3
    factor: float = 0.5
    early_stop: int | None = None
    label_smoothing: float = 0.0
    precision: str = "fp32"
    seed: int = 0
    clip: ClassVar[None] = None

    def rate(self, step: int, rows: Sequence[Row]) -> float:
        """As torch's ReduceLROnPlateau would have it after these rows."""
        return _plateau_rate(tuple(row["accuracy"] for row in rows), self.learning_rate, self.patience, self.factor)

    def is_over(self, rows: Sequence[Row]) -> bool:
        """Whether the best accuracy is `early_stop` rows old."""
        seen = [row["accuracy"] for row in rows]
        return self.early_stop is not None and bool(seen) and len(seen) - 1 - seen.index(max(seen)) >= self.early_stop

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Adam on all parameters."""
        return [torch.optim.Adam(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)]


@lru_cache(maxsize=8)
def _plateau_rate(accuracies: tuple[float, ...], rate: float, patience: int, factor: float) -> float:
    """The rate that torch's own scheduler sets, from the beginning: so it has no state to be saved."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=patience, factor=factor)
    for accuracy in accuracies:
        schedule.step(accuracy)
    return float(optimizer.param_groups[0]["lr"])
