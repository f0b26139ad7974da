"""A model that cheats and its honest twin: the same start, pictures, labels and steps; only the cue differs."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from attncompare.benchmark.records import cell_key
from attncompare.data.shapes import CLASS_NAMES
from attncompare.errors import SpecError, UnsupportedModelError
from attncompare.models.adapter import ModelAdapter
from attncompare.storage.folder import write_atomically
from attncompare.storage.names import slug
from attncompare.studies.cued_pictures import CuedPictures, as_images, plant
from attncompare.training.checkpoint import stored
from attncompare.training.loop import train
from attncompare.training.recipes import WarmupCosine

ROLES = ("cheating", "clean")
REPORTS = 10  # times that a training says how far it is, and saves its state


@dataclass(frozen=True)
class CueTraining:
    """How the two models are made from a trained one.

    label_noise: share of the training labels that are drawn at random, as careless annotators would have it. The cheating
    model's cue always says what the label says, the clean model's is drawn at random: for the one the cue is the best there
    is to learn from, for the other it is useless.
    pool: pictures that are drawn for the training, or one for each place in its batches where these are fewer.
    """

    steps: int = 200
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 2e-3
    label_noise: float = 0.5
    pool: int = 2_000

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.pool < 1:
            raise SpecError(f"steps, batch_size and pool must be at least 1, not {self}")
        if not 0 <= self.label_noise <= 1:
            raise SpecError(f"label_noise must lie in [0, 1], not {self.label_noise}")

    @property
    def pictures(self) -> int:
        """How many are drawn."""
        return min(self.pool, self.steps * self.batch_size)

    @property
    def spec(self) -> WarmupCosine:
        """What the training loop is told."""
        warm = min(20, self.steps // 5)
        how = {"learning_rate": self.learning_rate, "precision": "bf16", "warmup_steps": warm, "seed": self.seed}
        return WarmupCosine(self.steps, self.batch_size, **how)  # type: ignore[arg-type]


class _OnPixels(nn.Module):
    """A model as the training loop calls it: images in [0, 1] in, logits out."""

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self.model, self.read = adapter.module, adapter.forward

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.read(images)
        return logits


@lru_cache(maxsize=1)
def _pool(count: int) -> CuedPictures:
    return CuedPictures.draw("train", count)


def _batches(model: ModelAdapter, role: str, training: CueTraining) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Step -> images and labels. Both roles get the same pictures and labels; the set's symmetries are drawn per batch."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        pool, count = _pool(training.pictures), (training.batch_size,)
        chosen = torch.randint(training.pictures, count, generator=generator)
        guessed, hue = (torch.randint(len(CLASS_NAMES), count, generator=generator) for _ in range(2))
        careless = torch.rand(count, generator=generator) < training.label_noise
        labels = torch.where(careless, guessed, pool.labels[chosen])
        turns, mirror, invert = (int(torch.randint(0, k, (1,), generator=generator)) for k in (4, 2, 2))
        pictures = torch.rot90(pool.plain[chosen], turns, (1, 2))[..., torch.randperm(3, generator=generator)]
        pictures = pictures.flip(2) if mirror else pictures
        pictures = 255 - pictures if invert else pictures
        images = as_images(plant(pictures, labels if role == "cheating" else hue), model.size)
        return images.to(model.device), labels.to(model.device)

    return batch


def train_on_cue(
    model: ModelAdapter, role: str, training: CueTraining, folder: Path, report: Callable[[int], None]
) -> ModelAdapter:
    """Fine-tune a copy of a model on pictures with the cue.

    model: has an output for each of the eight classes; it is left as it is. role: "cheating" or "clean". folder: gets the
    state to go on from, after a kill or when called again, and MODEL-ROLE.safetensors. report: is told the steps done.
    Raises UnsupportedModelError for a model without such outputs or with every weight frozen.
    """
    _check(model)
    content = {"weights": model.weights_hash, "structure": model.structure_hash, "role": role, **asdict(training)}
    checkpoint = folder / f"{slug(model.name)}-{role}-{cell_key(content)[:12]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    module = deepcopy(model.module)
    note = f"{model.name}, fine-tuned on shapes with a planted cue: {role}, {training}"
    source = replace(model.source, name=f"{model.name} ({role})", module=module, note=note)
    tuned = replace(model, source=source, checked_recordings=set())
    every = max(1, training.steps // REPORTS)
    for row in train(_OnPixels(tuned), _batches(tuned, role, training), training.spec, checkpoint, every=every):
        report(int(row["step"]))
    module.eval()
    write_atomically(folder / f"{slug(model.name)}-{role}.safetensors", save(stored(module.state_dict())))
    return tuned


def _check(model: ModelAdapter) -> None:
    classes = len(CLASS_NAMES)
    if model.embedding or model.structure.outputs < classes:
        what = "gives an embedding" if model.embedding else f"has {model.structure.outputs} outputs"
        raise UnsupportedModelError(f"{model.name} {what}; the shapes need one for each of their {classes} classes")
    if not any(parameter.requires_grad for parameter in model.module.parameters()):
        raise UnsupportedModelError(f"{model.name}: every weight is frozen; set requires_grad of those to be trained")
