"""What inserted gates say and do: their values class by class, and what the network loses with the channels they favor."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.capture.forward_pass import record
from attncompare.capture.replay import Replay
from attncompare.models.adapter import ModelAdapter
from attncompare.modules.insertion import inserted
from attncompare.signals._base import request
from attncompare.state import preserve_state
from attncompare.training.data import Part, TrainingData

BATCH = 250


def gate_values(model: ModelAdapter, part: Part, layers: Sequence[str]) -> pd.DataFrame:
    """Mean gate per layer, class and channel; columns layer, class (its number), channel, gate.

    part: images fitted for the model. layers: as they were named to `insert`.
    """
    frames = []
    for layer, gates in _gates(model, part, layers).items():
        for label in np.unique(part.labels):
            mean = gates[part.labels == label].mean(axis=0)
            frames.append(pd.DataFrame({"layer": layer, "class": label, "channel": np.arange(len(mean)), "gate": mean}))
    return pd.concat(frames, ignore_index=True)


def _gates(model: ModelAdapter, part: Part, layers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Layer -> (images, channels) gates, as the sigmoid gave them."""
    places = {gate.layer: number for number, gate in enumerate(model.structure.se_layers)}
    paths = inserted(model.module)
    needs = {layer: request("channel_attention", gate=places[paths[layer]]) for layer in layers}
    seen: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for images, _ in _batches(model, part):
        found = record(model, images, needs.values())
        for layer, need in needs.items():
            gates = found.signals[need]
            assert isinstance(gates, Tensor)
            seen[layer].append(gates.cpu())
    return {layer: torch.cat(parts).double().numpy() for layer, parts in seen.items()}


def _batches(model: ModelAdapter, part: Part) -> list[tuple[Tensor, Tensor]]:
    """Images in [0, 1] on the model's device, and their classes."""
    parts = [part.batch(range(start, min(start + BATCH, len(part)))) for start in range(0, len(part), BATCH)]
    return [((images.float() / 255).to(model.device), labels) for images, labels in parts]


def ablation(
    model: ModelAdapter, data: TrainingData, layers: Sequence[str], *, share: float, draws: int, seed: int
) -> pd.DataFrame:
    """Accuracy on the test images with a share of a layer's channels set to zero behind its gates.

    channels: "highest" or "lowest", by their mean gate on the validation images, or "random", `draws` times. Columns layer,
    channels, draw, zeroed (how many), of (how many there are), accuracy, drop (in accuracy from that of the whole model).
    """
    ranked = {layer: gates.mean(axis=0) for layer, gates in _gates(model, data.validation, layers).items()}
    rng, frames = np.random.default_rng(seed), []
    paths = inserted(model.module)
    for layer in layers:
        order = np.argsort(ranked[layer], kind="stable")
        count = max(1, round(share * len(order)))
        chosen = [np.array([], dtype=np.int64), order[-count:], order[:count]]
        chosen += [rng.choice(len(order), count, replace=False) for _ in range(draws)]
        accuracies = _without(model, data.test, paths[layer], chosen)
        whole, rest = accuracies[0], accuracies[1:]
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "channels": ["highest", "lowest", *["random"] * draws],
                    "draw": [0, 0, *range(draws)],
                    "zeroed": count,
                    "of": len(order),
                    "accuracy": rest,
                    "drop": whole - rest,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _without(model: ModelAdapter, part: Part, path: str, chosen: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Accuracy with each set of channels at zero; what comes before the layer runs once."""
    hits = np.zeros(len(chosen))
    for images, labels in _batches(model, part):
        with torch.no_grad(), preserve_state(model.module):
            replay = Replay(model, path)
            replay.verify(replay.record(images))
            for number, channels in enumerate(chosen):
                altered = replay.tensor.clone()
                altered[:, channels] = 0
                guessed = replay.run(altered, torch.arange(len(images), device=model.device)).argmax(1)
                hits[number] += int((guessed.cpu() == labels).sum())
    return hits / len(part)
