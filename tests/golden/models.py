"""Eight small models, their images, masks and targets: the same numbers on every machine and with every release of torch.

The architectures are those of the other tests. Every weight is drawn anew from numpy's frozen generator, since how a
library initializes its layers changes between releases.
"""

import sys
import tempfile
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from references.dual_encoders import write
from torch import Tensor, nn

import attncompare as ac

IMAGES = 2
SEED = 4  # of the weights: with this one nearly no map of any model is constant
SE_CNN, PAIR = "se_cnn", "clip"
MODELS = ("cnn", SE_CNN, "vit", "vit_oblong", "vit_registers", "swin", "vit_map_pool", PAIR)
ATTENDED = {"cnn": "cam", SE_CNN: "cam", "swin": "window_attention"}
SCORED = {name: ("saliency", "grad_cam", ATTENDED.get(name, "attention_rollout")) for name in MODELS}
"""The methods whose maps are scored: a fine one, a coarse one and one that is the model's own."""


def draw_weights(module: nn.Module) -> nn.Module:
    """Fill every parameter and running statistic; buffers that are part of the architecture stay."""
    random = np.random.RandomState(SEED)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            drawn = torch.from_numpy(random.standard_normal(tuple(value.shape))).float()
            if name.endswith("running_var"):
                value.copy_(0.5 + drawn.abs())
            elif name.endswith("running_mean"):
                value.copy_(0.1 * drawn)
            elif isinstance(value, nn.Parameter) and value.ndim > 1:
                value.copy_(drawn * ((2 if value.ndim == 4 else 1) / value[0].numel()) ** 0.5)
            elif isinstance(value, nn.Parameter) and value.ndim == 1:
                value.copy_(float(name.endswith("weight")) + 0.2 * drawn)  # scales of norms lie around 1
    return module.eval()


@cache
def pair_folder() -> tempfile.TemporaryDirectory:
    """The image-text pair as save_pretrained writes it; the folder lives as long as the process."""
    folder = tempfile.TemporaryDirectory()
    module, _ = write(Path(folder.name), "CLIP")
    draw_weights(module).save_pretrained(folder.name)
    return folder


def tiny_models() -> ModuleType:
    """tests/conftest.py under a name of its own, since other folders have a conftest.py too; one serves all editions."""
    if "tiny_models" not in sys.modules:
        spec = spec_from_file_location("tiny_models", Path(__file__).parents[1] / "conftest.py")
        sys.modules["tiny_models"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["tiny_models"])
    return sys.modules["tiny_models"]


def module_of(model) -> nn.Module:
    """The wrapped module; version 0.1 calls it `model`."""
    return model.module if hasattr(model, "module") else model.model


@cache
def model_of(name: str):
    """A wrapped model, built once; the same name always has the same weights."""
    if name == PAIR:
        return ac.load_model(f"hf/{pair_folder().name}")
    if name == SE_CNN:
        module, size = module_of(ac.load_model("demo/se_cnn@random")), (48, 48)
    else:
        module, size = tiny_models().BUILDERS[name](), tiny_models().SIZES.get(name, (32, 32))
    return ac.wrap_model(draw_weights(module), size=size, name=f"golden/{name}")


def images_of(name: str) -> Tensor:
    """(IMAGES,3,H,W) in [0, 1]: coarse patches of color under some noise, so that edges and superpixels are clear."""
    random, (height, width) = np.random.RandomState(1), model_of(name).size
    patches = np.kron(random.uniform(size=(IMAGES, 3, height // 8, width // 8)), np.ones((8, 8)))
    return torch.from_numpy(0.8 * patches + 0.2 * random.uniform(size=patches.shape)).float()


def masks_of(name: str) -> Tensor:
    """(IMAGES,H,W) bool: a rectangle in another place of each image."""
    height, width = model_of(name).size
    masks = torch.zeros(IMAGES, height, width, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[height // 4 : 3 * height // 4, index * width // 4 : (index + 2) * width // 4] = True
    return masks


def target_of(name: str):
    """What is explained in each image: a class, or a prompt."""
    return ["text:a photo of a cat", "text:a photo of a dog"] if name == PAIR else torch.tensor([3, 1])
