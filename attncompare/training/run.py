"""One training from a spec to a folder: weights, history and what was done; and the trained model back from it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attncompare import __version__, tuning
from attncompare.environment import environment, thread_count
from attncompare.errors import ResultFormatError
from attncompare.models.adapter import ModelAdapter, output_tensor
from attncompare.models.load import check_device, load_model
from attncompare.models.preprocessing import Preprocessing
from attncompare.progress import Progress, Tick
from attncompare.storage.folder import write_atomically
from attncompare.training.checkpoint import Row, load_state, stored
from attncompare.training.data import Part, TrainingData, open_training_data
from attncompare.training.loop import train
from attncompare.training.models import build
from attncompare.training.recipes import AdamPlateau
from attncompare.training.spec import TrainSpec

CHECKPOINT, WEIGHTS, CARD, HISTORY = "checkpoint.safetensors", "weights.safetensors", "training.json", "history.csv"
VALIDATION_BATCH = 250


@dataclass(frozen=True)
class Training:
    """A finished training.

    card: what was done and what came out (`training.json`). history: one row per epoch: step, loss, learning_rate,
    accuracy (validation), seconds and cpu_seconds spent in training steps so far.
    """

    folder: Path
    card: dict[str, Any]
    history: pd.DataFrame

    def model(self, device: str = "cpu") -> ModelAdapter:
        """The trained model with the weights of its best epoch, ready to be explained."""
        return load_trained(self.folder, device=device)


def train_model(spec: TrainSpec, out: str | Path = "runs/train", *, progress: Progress = lambda tick: None) -> Training:
    """Train a classifier; a second call goes on where the first was killed, or reads what it finished.

    out: the folder of checkpoint.safetensors, weights.safetensors (the best epoch), training.json and history.csv.
    Raises SpecError for a folder that holds another training, and whatever the data or the model are refused for.
    """
    data, out = open_training_data(spec), Path(out)
    with thread_count(spec.threads):
        for _ in epochs(spec, data, out, progress):
            pass
        return finish(spec, data, out)


def epochs(spec: TrainSpec, data: TrainingData, out: Path, progress: Progress = lambda tick: None) -> Iterator[Row]:
    """Train epoch by epoch, so that several trainings can take turns; yields the rows of the history."""
    source = build(spec, data.class_names)
    device = check_device(spec.device)
    model, how = source.module.to(device, memory_format=torch.channels_last), source.preprocessing  # type: ignore[call-overload]
    data = data.fitted(how)
    per_epoch = steps_per_epoch(data.train, spec)
    total = spec.epochs * per_epoch
    out.mkdir(parents=True, exist_ok=True)
    yield from train(
        model,
        batches(spec, data.train, how, device),
        recipe(spec, total),
        out / CHECKPOINT,
        validate=lambda module: accuracy(module, data.validation, how),
        every=per_epoch,
        identity=identity(spec, data),
        tick=lambda step: progress(Tick(step, total, f"epoch {-(-step // per_epoch)} of {spec.epochs}")),
    )


def identity(spec: TrainSpec, data: TrainingData) -> str:
    """What the weights depend on besides the recipe."""
    return f"{spec.identity} {data.fingerprint}"


def steps_per_epoch(part: Part, spec: TrainSpec) -> int:
    """Batches of an epoch; a last one of a single image is left out, because batch norm has nothing to average there."""
    full, rest = divmod(len(part), spec.batch_size)
    return max(1, full + (rest > 1))


def recipe(spec: TrainSpec, steps: int) -> AdamPlateau:
    """What the spec says of optimizer and schedule."""
    names = (
        "learning_rate",
        "weight_decay",
        "patience",
        "factor",
        "early_stop",
        "label_smoothing",
        "precision",
        "seed",
    )
    return AdamPlateau(steps, **{name: getattr(spec, name) for name in names})


def batches(
    spec: TrainSpec, part: Part, how: Preprocessing, device: torch.device
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Step -> (normalized images, labels): every epoch all images once, in an order of the seed and the epoch alone."""
    per_epoch = steps_per_epoch(part, spec)

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.randperm(len(part), generator=torch.Generator().manual_seed(spec.seed * 1_000_003 + epoch))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, per_epoch)
        chosen = order(epoch)[number * spec.batch_size : (number + 1) * spec.batch_size]
        images, labels = part.batch(chosen.tolist())
        if spec.augment:
            images = augmented(images, torch.Generator().manual_seed(spec.seed * 1_000_003 + step))
        return normalized(images.to(device), how), labels.to(device)

    return batch


def normalized(images: Tensor, how: Preprocessing) -> Tensor:
    """(n,3,H,W) uint8 -> float32 as the bare model wants them."""
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(one, device=images.device).reshape(shape) for one in (how.mean, how.std))
    scaled = (images.float() / 255 - mean) / std
    return (scaled.flip(1) if how.bgr else scaled).contiguous(memory_format=torch.channels_last)  # 1.6 times as fast


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped with probability 1/2, and shifted by up to an eighth of its sides (zeros move in)."""
    count, _, height, width = images.shape
    down, across = height // 8, width // 8
    padded = nn.functional.pad(images, (across, across, down, down))
    rows = torch.randint(0, 2 * down + 1, (count,), generator=generator).tolist()
    columns = torch.randint(0, 2 * across + 1, (count,), generator=generator).tolist()
    shifted = [one[:, r : r + height, c : c + width] for one, r, c in zip(padded, rows, columns, strict=True)]
    mirror = torch.rand(count, generator=generator) < 0.5
    return torch.stack([one.flip(2) if flip else one for one, flip in zip(shifted, mirror.tolist(), strict=True)])


def accuracy(model: nn.Module, part: Part, how: Preprocessing) -> float:
    """Share of right answers in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    hits = 0
    with torch.no_grad():
        for start in range(0, len(part), VALIDATION_BATCH):
            images, labels = part.batch(range(start, min(start + VALIDATION_BATCH, len(part))))
            guessed = output_tensor(model(normalized(images.to(device), how))).argmax(1)
            hits += int((guessed.cpu() == labels).sum())
    return hits / len(part)


def finish(spec: TrainSpec, data: TrainingData, out: Path) -> Training:
    """Write the best weights, the history and the card of a training whose epochs are done; once."""
    from safetensors.torch import save

    if (out / CARD).exists() and (done := read_training(out)).card["identity"] == identity(spec, data):
        return done
    state = load_state(out / CHECKPOINT)
    history = pd.DataFrame(state.rows)
    source = build(spec, data.class_names)
    source.module.load_state_dict(state.best)
    how, best = source.preprocessing, int(history.accuracy.to_numpy().argmax())
    tested = accuracy(source.module.to(check_device(spec.device)), data.fitted(how).test, how)
    card = {
        "attncompare": __version__,
        "identity": identity(spec, data),
        "spec": spec.model_dump(mode="json"),
        "images": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
        "class_names": list(data.class_names),
        "parameters": sum(p.numel() for p in source.module.parameters()),
        "epochs": len(history),
        "best_epoch": best + 1,
        "validation_accuracy": float(history.accuracy[best]),
        "test_accuracy": tested,
        "seconds_per_epoch": float(history.seconds.diff().fillna(history.seconds).median()),
        "environment": environment(spec.device) | {"tuning": tuning.describe()},
    }
    write_atomically(out / WEIGHTS, save(stored(source.module.state_dict())))
    write_atomically(out / HISTORY, history.to_csv(index=False).encode())
    write_atomically(out / CARD, json.dumps(card, indent=2).encode())  # last: it says that all is there
    return Training(out, card, history)


def read_training(out: str | Path) -> Training:
    """A finished training; ResultFormatError for a folder that holds none."""
    out = Path(out)
    try:
        return Training(out, json.loads((out / CARD).read_text()), pd.read_csv(out / HISTORY))
    except (OSError, ValueError) as error:
        raise ResultFormatError(f"{out} holds no finished training ({error}); run attncompare train") from error


def load_trained(folder: str | Path, *, device: str = "cpu") -> ModelAdapter:
    """The model that `train_model` left in a folder, with the weights of its best epoch: `load_model("trained/FOLDER")`.

    Raises ResultFormatError for a folder without a finished training, AttnCompareError for weights that do not fit.
    """
    return load_model(f"trained/{Path(folder)}", device=device)
