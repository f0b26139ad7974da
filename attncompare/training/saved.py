"""trained/: what `attncompare train` left in a folder, as a model by name for every command."""

import os
from dataclasses import replace
from pathlib import Path

from attncompare.models.adapter import ModelSource
from attncompare.models.checkpoint import load_checkpoint
from attncompare.training.models import build
from attncompare.training.run import WEIGHTS, read_training
from attncompare.training.spec import TUTORIAL_CNN, TrainSpec


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Build the model of a training's folder with the weights of its best epoch, or with seeded random ones.

    Raises ResultFormatError for a folder without a finished training, AttnCompareError for weights that do not fit.
    """
    trained = read_training(Path(os.path.expanduser(name)))
    spec = TrainSpec(**trained.card["spec"])
    source = build(_random(spec, seed) if random else spec, trained.card["class_names"])
    note = f"{spec.model}, randomly initialized"
    if not random:
        load_checkpoint(source.module, trained.folder / WEIGHTS)
        note = f"{spec.model} trained on {spec.data}, test accuracy {trained.card['test_accuracy']:.4f}"
    source.module.eval()
    return replace(source, name=f"trained/{name}", note=note)


def _random(spec: TrainSpec, seed: int) -> TrainSpec:
    """The same model from drawn weights, also where its training started from pretrained ones."""
    plain = spec.model.partition("@")[0]
    return spec.model_copy(update={"model": plain if plain == TUTORIAL_CNN else f"{plain}@random", "seed": seed})


def names() -> list[str]:
    """None: a folder may lie anywhere."""
    return []
