"""A run folder from formulas alone: no model, the same bytes everywhere, with names as long as real ones."""

from pathlib import Path

import numpy as np
import torch

from attncompare.benchmark.layer_maps import LayerArchive, LayerMap, SavedLayers
from attncompare.benchmark.records import Record
from attncompare.benchmark.saved import MapArchive, save_image
from attncompare.benchmark.store import ResultStore

MODELS = ("torchvision/resnet50", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k")
ONLY = {"cam": 0, "attention_rollout": 1, "class_attention": 1, "gradient_rollout": 1}  # what one model has alone
METHODS = (
    "cam", "grad_cam", "hires_cam", "integrated_gradients", "input_x_gradient", "saliency", "attention_rollout",
    "class_attention", "gradient_rollout", "random_map", "center_map", "edge_map",
)  # fmt: skip
METRICS = ("deletion", "insertion", "pointing_game", "energy_inside")
SIGNED = ("hires_cam", "input_x_gradient")
IMAGES = tuple(f"photo_{number}.png" for number in range(6))
SIDE, POINTS = 48, 15


def methods_of(model: str) -> list[str]:
    """The methods that a model supports."""
    return [name for name in METHODS if MODELS[ONLY.get(name, MODELS.index(model))] == model]


def skill(model: str, method: str) -> float:
    """How good a method is, in (0, 1): what all its scores follow."""
    place = METHODS.index(method)
    return 0.85 - 0.05 * place - 0.04 * MODELS.index(model) * (place % 3)


def photo(number: int) -> np.ndarray:
    """(SIDE,SIDE,3) uint8: a disk on a slope of color."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    disk = (x - 0.3 - 0.08 * number) ** 2 + (y - 0.45) ** 2 < 0.04
    picture = np.stack([0.3 + 0.5 * x, 0.3 + 0.4 * y, np.full_like(x, 0.2 + 0.1 * number)], axis=2)
    picture[disk] = (0.9, 0.8 - 0.1 * number, 0.3)
    return (picture * 255).astype(np.uint8)


def attribution(model: str, method: str, number: int) -> np.ndarray:
    """(12,12) float32: a bell that lies further from the disk the worse the method is; signed methods dip beside it."""
    y, x = (np.mgrid[0:12, 0:12] + 0.5) / 12
    miss = 1 - skill(model, method)
    bell = np.exp(-((x - 0.3 - 0.08 * number - 0.3 * miss) ** 2 + (y - 0.45 - 0.4 * miss) ** 2) / 0.03)
    dip = np.exp(-((x - 0.8) ** 2 + (y - 0.2) ** 2) / 0.03) if method in SIGNED else 0.0
    return (bell - 0.6 * dip).astype(np.float32)


def records(model: str, method: str, key: str, metrics: tuple[str, ...]) -> list[Record]:
    """All values of a method on a model."""
    rows, good = [], skill(model, method)
    for number, image in enumerate(IMAGES):
        wobble = 0.07 * np.sin(2.3 * number + 5 * good)
        for measure in metrics:
            curve = None
            if measure in ("deletion", "insertion"):
                x = np.linspace(0, 1, POINTS)
                curve = (0.9 * np.exp(-(1 + 6 * good + 8 * wobble) * x)).tolist()
                curve = curve if measure == "deletion" else [0.95 - value for value in curve]
                value = float(np.trapezoid(curve, dx=1 / (POINTS - 1)))
            else:
                value = float(np.clip(good + wobble, 0, 1))
                value = float(round(value)) if measure == "pointing_game" else value
            rows.append(
                Record(model, method, image, 1, measure, "grid14" if curve else "", value, "ok", "", key, curve)
            )
    place = METHODS.index(method)
    costs = {
        "latency_median": 0.004 * 1.4**place,
        "passes_forward": 1.0 + 15 * (place == 3),
        "passes_backward": place % 2,
    }
    for measure, value in {**costs, "latency_ratio": 1.4**place}.items():
        rows.append(Record(model, method, "", -1, measure, "", float(value), "ok", "", key))
    return rows


def layers(model: str, number: int) -> list[LayerMap]:
    """Twelve blocks of six heads, or four stages with their eight strongest channels."""
    kind, names, count = ("channel", ["layer1", "layer2", "layer3", "layer4"], 8)
    if model == MODELS[1]:
        kind, names, count = "head", [f"blocks.{block}.attn" for block in range(12)], 6
    stack = np.stack([attribution(model, method, number) for method in METHODS[:count]])
    return [LayerMap(name, kind, np.arange(count), np.roll(stack, shift, axis=2)) for shift, name in enumerate(names)]


def synthetic_run(folder: Path, *, metrics: tuple[str, ...] = METRICS, maps: bool = True) -> Path:
    """Write the run and return its folder."""
    store, keys = ResultStore(folder), []
    for model in MODELS:
        for method in methods_of(model):
            key = f"{MODELS.index(model)}{METHODS.index(method):02d}".ljust(64, "0")
            keys.append(key)
            store.write(key, records(model, method, key, metrics), {"device": "cpu", "threads": 1, "batch_size": 8})
            if maps:
                found = {name: torch.from_numpy(attribution(model, method, i)) for i, name in enumerate(IMAGES)}
                MapArchive(folder).write(key, model, method, found, dict.fromkeys(IMAGES, "golden retriever, dog"))
        if maps:
            inside = {name: layers(model, number) for number, name in enumerate(IMAGES)}
            LayerArchive(folder).write(key, SavedLayers(model, inside))
        for number, name in enumerate(IMAGES):
            save_image(folder, model, name, photo(number))
    spec = {"models": MODELS, "metrics": metrics, "data": "photos", "protocol": "grid14", "target": "argmax", "seed": 0}
    manifest = {
        "spec": spec | {"timing_batch": 1, "methods": METHODS},
        "protocol": {"until": 1.0, "score": "probability"},
        "environment": {"device": "cpu", "threads": 1},
        "models": {},
        "images": len(IMAGES),
        "keys": keys,
    }
    store.write_manifest(manifest)
    return folder
