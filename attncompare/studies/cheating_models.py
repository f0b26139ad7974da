"""Which methods reveal that a model cheats: their energy on a planted cue, against an honest twin's on the same images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attncompare.arguments import check_names
from attncompare.benchmark.statistics import mean_interval
from attncompare.errors import SpecError, UnsupportedMethodError
from attncompare.models.adapter import ModelAdapter
from attncompare.models.load import load_model
from attncompare.progress import Progress, Tick
from attncompare.studies.cheater import ROLES, CueTraining, train_on_cue
from attncompare.studies.cue_energy import BATCH, SHOWN, OnCue, as_table, compare_energies, energy_on, supported
from attncompare.studies.cued_pictures import CUE_AREA, CuedPictures, cue_mask

ASKED = 256  # test pictures that accuracies are counted on


@dataclass(frozen=True)
class Pair:
    """A cheating model and its clean twin, and what the maps of some images look like.

    name: of the model both were made from. images: (n,3,H,W) in [0, 1], the first of those explained. labels: (n,).
    found: role -> energies and maps.
    """

    name: str
    models: Mapping[str, ModelAdapter]
    images: Tensor
    labels: Tensor
    found: Mapping[str, OnCue] = field(repr=False)


@dataclass(frozen=True)
class Cheating:
    """What the study found.

    methods: one row per model and method, see `compare_energies`. accuracy: model, role, cue (right, random, wrong), n,
    accuracy with its 95 % interval (low, high), and says_cue: how often the answer is the class that the cue stands for.
    energies: model, method, role, image, energy. refused: model, method, reason. area: the cue's share of the image.
    """

    methods: pd.DataFrame
    accuracy: pd.DataFrame
    energies: pd.DataFrame
    refused: pd.DataFrame
    pairs: tuple[Pair, ...]
    area: float = CUE_AREA


def cheating(
    out: str | Path,
    *,
    models: Sequence[str | ModelAdapter] = ("demo/cnn", "demo/vit"),
    methods: str | Sequence[str] = "cheap",
    images: int = 32,
    training: CueTraining = CueTraining(),  # noqa: B008  (frozen)
    device: str = "cpu",
    progress: Progress | None = None,
) -> Cheating:
    """Make a cheating and a clean model of each model, and measure how much of each method's maps lies on the cue.

    The maps explain the true class on test images whose cue is right, where accuracy does not tell who cheats; look at it
    all the same: of a clean model that has become worse, part of the difference may be that. out: a folder; the trained
    weights go to out/weights, and a second call trains nothing again. models: names, or models of your own (`wrap_model`)
    with eight or more outputs. methods: names, "cheap" or "all". Raises UnsupportedModelError for a model that cannot learn
    the shapes, UnsupportedMethodError for one that supports none of the methods, SpecError for two models of one name.

    >>> import tempfile
    >>> short = CueTraining(steps=1, batch_size=8, pool=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = cheating(folder, models=["demo/cnn"], methods=["cam", "random_map"], images=4, training=short)
    >>> sorted(found.methods.method), found.area
    (['cam', 'random_map'], 0.015625)
    """
    if images < 2:
        raise SpecError(f"images must be at least 2, not {images}")
    adapters = [load_model(one, device=device) if isinstance(one, str) else one for one in models]
    check_names(adapters)
    chosen = {model.name: supported(model, methods) for model in adapters}
    for name, (taken, reasons) in chosen.items():
        if not taken:
            raise UnsupportedMethodError(f"{name} supports none of the methods: {'; '.join(reasons.values())}")
    steps = _Steps(training.steps, len(adapters) * len(ROLES), progress)
    pictures = CuedPictures.draw("test", max(images, ASKED))
    pairs, accuracy = [], []
    for model in adapters:
        folder = Path(out) / "weights"
        twins = {role: train_on_cue(model, role, training, folder, steps.of(f"{model.name}, {role}")) for role in ROLES}
        accuracy += [_accuracy(twin, pictures, model.name, role) for role, twin in twins.items()]
        labels = pictures.labels[:images]
        seen = pictures.planted(pictures.labels, model.size)[:images].to(model.device)
        found = {
            role: energy_on(twin, seen, labels.to(model.device), cue_mask(model.size), chosen[model.name][0])
            for role, twin in twins.items()
        }
        pairs.append(Pair(model.name, twins, seen[:SHOWN].cpu(), labels[:SHOWN], found))
    table = pd.concat([_energies(pair) for pair in pairs], ignore_index=True)
    refused = [(name, method, why) for name, (_, reasons) in chosen.items() for method, why in reasons.items()]
    refused += [(p.name, method, why) for p in pairs for one in p.found.values() for method, why in one.failed.items()]
    return Cheating(
        compare_energies(table),
        pd.concat(accuracy, ignore_index=True),
        table,
        pd.DataFrame(refused, columns=["model", "method", "reason"]).drop_duplicates(
            ["model", "method"], ignore_index=True
        ),
        tuple(pairs),
    )


def _energies(pair: Pair) -> pd.DataFrame:
    """Of the methods that gave maps on both models."""
    both = set.intersection(*(set(one.energies) for one in pair.found.values()))
    shared = {
        role: {name: values for name, values in one.energies.items() if name in both}
        for role, one in pair.found.items()
    }
    return as_table(shared, pair.name)


def _accuracy(model: ModelAdapter, pictures: CuedPictures, name: str, role: str) -> pd.DataFrame:
    """How often the answers are right, and how often they are what the cue says, under right, random and wrong cues."""
    labels, rows = pictures.labels, []
    for cue, shown in (("right", labels), ("random", pictures.random_cue(1)), ("wrong", pictures.wrong_cue(2))):
        images = pictures.planted(shown, model.size)
        with torch.no_grad():
            parts = [
                model.forward(images[start : start + BATCH].to(model.device)) for start in range(0, len(images), BATCH)
            ]
        answers = torch.cat(parts).argmax(1).cpu()
        hits = (answers == labels).numpy().astype(np.float64)
        low, high = mean_interval(hits)
        rows.append((name, role, cue, len(hits), hits.mean(), low, high, float((answers == shown).float().mean())))
    return pd.DataFrame(rows, columns=["model", "role", "cue", "n", "accuracy", "low", "high", "says_cue"])


@dataclass
class _Steps:
    """Counts the steps of all trainings for the one who waits."""

    each: int
    trainings: int
    progress: Progress | None
    begun: int = 0

    def of(self, what: str) -> Callable[[int], None]:
        """The report of one more training."""
        before, self.begun = self.begun * self.each, self.begun + 1

        def report(step: int) -> None:
            if self.progress is not None:
                self.progress(Tick(before + step, self.each * self.trainings, what))

        return report
