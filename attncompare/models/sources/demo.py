"""demo/: three small models that ship with the package, trained on the synthetic shapes by `benchmarks/demo_models`."""

import json
from itertools import pairwise
from pathlib import Path

from torch import nn

from attncompare.errors import unknown_name
from attncompare.models.adapter import ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.sources.timm import vision_transformer
from attncompare.models.sources.torchvision import squeeze_excitation
from attncompare.state import seeded_weights

WEIGHTS = Path(__file__).parent / "demo_weights"
CHANNELS = (32, 64, 128)
REDUCTION = 16
SIDE = 64
CLASS_NAMES = ("disk", "ring", "square", "triangle", "star", "cross", "crescent", "tee")


def _block(inputs: int, outputs: int, attention: bool) -> nn.Sequential:
    """conv-BN-ReLU, channel attention if asked for, then pooling."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 5, padding=2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
    if attention:
        layers.append(squeeze_excitation(outputs, outputs // REDUCTION))
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def build_cnn(attention: bool = False) -> nn.Module:
    """Three blocks of 32, 64, 128 channels, global average pooling and one linear layer, so that CAM exists."""
    widths = (3, *CHANNELS)
    blocks = [_block(i, o, attention) for i, o in pairwise(widths)]
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], len(CLASS_NAMES))]
    return nn.Sequential(*blocks, *head)


def build_vit() -> nn.Module:
    """A plain timm ViT with a class token: 6 blocks, width 128, 4 heads, patches of 8 pixels."""
    return vision_transformer(
        img_size=SIDE, patch_size=8, embed_dim=128, depth=6, num_heads=4, num_classes=len(CLASS_NAMES)
    )


BUILDERS = {"cnn": lambda: build_cnn(False), "se_cnn": lambda: build_cnn(True), "vit": build_vit}


def model_card(name: str) -> dict[str, object]:
    """The JSON beside the weights: recipe, seed, epochs, accuracy and sha256."""
    card: dict[str, object] = json.loads((WEIGHTS / f"{name}.json").read_text())
    return card


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Build a demo model with its shipped weights, or with seeded random ones."""
    if name not in BUILDERS:
        raise unknown_name("model", f"demo/{name}", [f"demo/{known}" for known in BUILDERS])
    with seeded_weights(seed):
        model = BUILDERS[name]()
    note = "randomly initialized"
    if not random:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
        note = f"trained on the synthetic shapes, test accuracy {model_card(name)['test_accuracy']}"
    size = Preprocessing(size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
    return ModelSource(f"demo/{name}", model.eval(), size, class_names=CLASS_NAMES, note=note)


def names() -> list[str]:
    """All model names of this source."""
    return sorted(BUILDERS)
