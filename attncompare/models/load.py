"""Names to models: load_model, wrap_model, list_models."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from attncompare.errors import SpecError, UnknownNameError, UnsupportedModelError
from attncompare.inspection.attention_calls import AttentionCalls, Recorder
from attncompare.inspection.layout import TokenLayout
from attncompare.inspection.probe import probe
from attncompare.inspection.structure import Classifier, Family, ModelStructure, SELayer
from attncompare.models.adapter import ModelAdapter, ModelSource, resolve_layer
from attncompare.models.checkpoint import load_checkpoint
from attncompare.models.preprocessing import Preprocessing
from attncompare.state import device_of

SOURCES = {
    "torchvision": "models.sources.torchvision",
    "timm": "models.sources.timm",
    "hf": "models.sources.huggingface",
    "demo": "models.sources.demo",
    "offline": "models.sources.offline",
    "trained": "training.saved",  # needs this file to build what was trained, so it is named here and not imported
}
"""Name prefix -> file with load(name, random, seed) and names()."""
FOLDERS = ("hf/", "trained/")
"""Prefixes behind which a folder may stand."""


def _source_file(prefix: str) -> ModuleType:
    return import_module(f"attncompare.{SOURCES[prefix]}")


def check_device(device: str | torch.device) -> torch.device:
    """The device, or SpecError when there is none of that name here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SpecError(f"device {str(device)!r} is not one; use cpu, cuda or mps") from error
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(found.type, False):
        raise SpecError(f"device {str(device)!r} is not available on this machine; use cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise SpecError(f"device {str(device)!r}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    return found


def load_model(name: str, *, device: str | torch.device = "cpu", seed: int = 0) -> ModelAdapter:
    """Load a model by name and find out what it can supply.

    name: "torchvision/resnet50", "timm/vit_tiny_patch16_224", "hf/path/to/folder", "demo/vit",
    "offline/efficientnet_lite0", "trained/runs/train" (the folder of `attncompare train`); "@random" behind it gives
    random weights, drawn with `seed`, "@file.safetensors" a checkpoint.
    Raises UnknownNameError for a name that does not exist and AttnCompareError when the weights cannot be had.

    >>> model = load_model("timm/vit_tiny_patch16_224@random")
    >>> model.tokens
    TokenLayout(prefix=1, grid=(14, 14), class_token=0)
    """
    with torch.inference_mode(False):  # weights made inside it could never lead to a gradient
        return _adapt(load_source(name, seed=seed), device)


def load_source(name: str, *, seed: int = 0) -> ModelSource:
    """As `load_model`, without looking into the model: nothing is run."""
    if not isinstance(name, str):
        raise UnknownNameError(f"model {name!r} is not a name; a module of your own goes to wrap_model")
    folder = name.startswith(FOLDERS) and os.path.isdir(os.path.expanduser(name.partition("/")[2]))  # may hold an @
    plain, at, suffix = (name, "", "") if folder else name.partition("@")
    prefix, _, rest = plain.partition("/")
    if at and not suffix:
        raise UnknownNameError(f"unknown model {name!r}; behind the @ stands random or a checkpoint file")
    if prefix not in SOURCES or not rest:
        allowed = ", ".join(f"{known}/NAME" for known in SOURCES)
        raise UnknownNameError(f"unknown model {name!r}; a model is one of {allowed}")
    with torch.inference_mode(False):  # weights made inside it could never lead to a gradient
        source: ModelSource = _source_file(prefix).load(rest, bool(suffix), seed)
        if suffix and suffix != "random":
            load_checkpoint(source.module, Path(os.path.expanduser(suffix)))
            source = replace(source, note=f"checkpoint {suffix}")
        return replace(source, name=name)


def wrap_model(  # noqa: PLR0913  # a public entry point
    module: nn.Module,
    *,
    size: tuple[int, int] = (224, 224),
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
    name: str = "user/model",
    class_names: Sequence[object] | None = None,
    embedding: bool = False,
    encode_text: Callable[[str], Tensor] | None = None,
    attention: Recorder = AttentionCalls,
    **overrides: object,
) -> ModelAdapter:
    """Wrap any nn.Module that maps (B,3,H,W) to (B,K); probing finds its features, attention and SE layers.

    class_names: one for each output. embedding: the output is an embedding, not logits. encode_text: prompt -> (D,)
    embedding beside those of the images, which allows targets "text:PROMPT". attention: a recorder of your own, for a
    module whose attention is not found; see docs/how-to/attention.md.
    overrides: parts of the structure to use instead of what the probe finds: feature_layer="path", tokens=TokenLayout(...),
    attention_blocks=(...), classifier=Classifier(feature_module, linear), se_layers=(SELayer(layer, values), ...).
    `adapter.describe()` says what was found.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> wrap_model(net, size=(32, 32)).describe()["classifier"]
    {'feature_module': '1', 'linear': '4', 'rectified': False}
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps: its calls cannot be followed
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"{module!r} is not an nn.Module; a function goes into the forward of one")
    if not isinstance(name, str):
        raise UnsupportedModelError(f"name must be text, not {name!r}")
    allowed = {"feature_layer", "tokens", "attention_blocks", "classifier", "se_layers", "stages", "family"}
    if set(overrides) - allowed:
        raise UnknownNameError(f"wrap_model does not know {sorted(set(overrides) - allowed)}; known: {sorted(allowed)}")
    _check_overrides(overrides)
    if class_names is not None and not isinstance(class_names, list | tuple):
        raise UnsupportedModelError(f"class_names must be a list with one name per output, not {class_names!r}")
    if not (isinstance(attention, type) and issubclass(attention, AttentionCalls)):
        raise UnsupportedModelError(f"attention must be AttentionCalls or a subclass of it, not {attention!r}")
    names = None if class_names is None else tuple(str(label) for label in class_names)
    how = _preprocessing(size, mean, std)
    source = ModelSource(
        name,
        module,
        how,
        names,
        embedding=bool(embedding),
        overrides=overrides,
        encode_text=encode_text,
        attention=attention,
    )
    adapter = _adapt(source, device_of(module))
    if names is not None and len(names) != adapter.structure.outputs:
        raise UnsupportedModelError(f"{len(names)} class_names for a model of {adapter.structure.outputs} outputs")
    return adapter


def _preprocessing(size: object, mean: object, std: object) -> Preprocessing:
    """What a user says of the images, checked."""
    given: Any = size
    if not (isinstance(given, list | tuple) and len(given) == 2 and all(type(s) is int and s > 0 for s in given)):
        raise UnsupportedModelError(f"size must be (height, width) in pixels, not {size!r}")
    low, high = _three("mean", mean), _three("std", std)
    if not all(0 <= one <= 1 for one in low) or not all(0 < one < float("inf") for one in high):
        raise UnsupportedModelError(
            f"mean {low} and std {high}: of images in [0, 1], so mean in [0, 1] and std above 0"
        )
    return Preprocessing((given[0], given[1]), low, high)


def _three(what: str, values: Any) -> tuple[float, ...]:
    """One number for each of red, green and blue."""
    try:
        found = tuple(float(one) for one in values)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{what} must be three numbers, not {values!r}") from error
    if len(found) != 3:
        raise UnsupportedModelError(f"{what} must be three numbers, of red, green and blue, not {found}")
    return found


def _check_overrides(overrides: dict[str, object]) -> None:
    """Raise UnsupportedModelError where a part of the structure that the user gives is of another type."""
    if not isinstance(overrides.get("feature_layer") or "", str):
        raise UnsupportedModelError(f"feature_layer must be the path of a module, not {overrides['feature_layer']!r}")
    for part in ("attention_blocks", "stages"):
        paths = overrides.get(part) or ()
        if not (isinstance(paths, list | tuple) and all(isinstance(path, str) for path in paths)):
            raise UnsupportedModelError(f"{part} must be a tuple of module paths, not {paths!r}")
    if overrides.get("family", "cnn") not in get_args(Family):
        raise UnsupportedModelError(f"family must be one of {', '.join(get_args(Family))}, not {overrides['family']!r}")
    if not isinstance(overrides.get("tokens", TokenLayout(0, (1, 1))), TokenLayout):
        raise UnsupportedModelError("tokens must be a TokenLayout(prefix, (h, w), class_token)")
    if not isinstance(overrides.get("classifier", Classifier("", "")), Classifier):
        raise UnsupportedModelError("classifier must be a Classifier(feature_module, linear) of two module paths")
    se_layers = overrides.get("se_layers", ())
    if not (isinstance(se_layers, tuple) and all(isinstance(layer, SELayer) for layer in se_layers)):
        raise UnsupportedModelError("se_layers must be a tuple of SELayer(layer, values), two module paths each")


def _adapt(source: ModelSource, device: str | torch.device) -> ModelAdapter:
    if any(nn.parameter.is_lazy(parameter) for parameter in source.module.parameters()):
        raise UnsupportedModelError(
            f"{source.name} has lazy layers whose shapes are not known; run it once, then wrap it"
        )
    if any(parameter.is_inference() for parameter in source.module.parameters()):
        raise UnsupportedModelError(
            f"{source.name}: its weights were made under torch.inference_mode: build it outside"
        )
    source.module.to(check_device(device))
    bad = [name for name, value in source.module.named_parameters() if not bool(torch.isfinite(value).all())]
    bad += [
        name for name, value in source.module.named_buffers() if bool(value.isnan().any())
    ]  # limits may be infinite
    if bad:
        raise UnsupportedModelError(f"{source.name} has non-finite weights in {bad[0]} ({len(bad)} tensors in all)")
    adapter = ModelAdapter(source, probe(source))
    for path in _named(adapter.structure) if source.overrides else ():
        resolve_layer(adapter, path)
    return adapter


def _named(structure: ModelStructure) -> list[str]:
    """Every module path in it."""
    classifier = (
        [] if structure.classifier is None else [structure.classifier.feature_module, structure.classifier.linear]
    )
    gates = [path for gate in structure.se_layers for path in (gate.layer, gate.values)]
    layers = [structure.feature_layer] if structure.feature_layer else []
    return [*layers, *structure.attention_blocks, *classifier, *gates]


def list_models(pattern: str = "*") -> list[str]:
    """All model names that match a shell pattern.

    >>> list_models("demo/*")
    ['demo/cnn', 'demo/se_cnn', 'demo/vit']
    """
    prefixes = [prefix for prefix in SOURCES if prefix.startswith(pattern.partition("/")[0].rstrip("*"))] or list(
        SOURCES
    )
    listed = [f"{prefix}/{name}" for prefix in prefixes for name in _source_file(prefix).names()]
    return sorted(name for name in listed if fnmatch(name, pattern))
