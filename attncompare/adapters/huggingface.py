"""hf/: image classifiers and vision backbones of transformers, from a hub name or a folder written by save_pretrained."""

from pathlib import Path
from typing import Any

from attncompare.adapters.base import Preprocessing, Source
from attncompare.errors import AttnCompareError, UnsupportedModelError

# The processors that ship no size and configs that ship no image size fall back to what the library documents.
DEFAULT_SIDE = 224
SQUASHED_FROM = 384
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def names() -> list[str]:
    """Hub names are not listed: any folder or hub name is accepted."""
    return []


def _pair(size: Any) -> tuple[int, int] | None:
    """(H, W) from the many ways in which a size is written."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    for keys in (("height", "width"), ("shortest_edge", "shortest_edge")):
        found: list[Any] = [size.get(key) if hasattr(size, "get") else getattr(size, key, None) for key in keys]
        if all(found):
            return int(found[0]), int(found[1])
    return None


def _preprocessing(name: str, config: Any) -> Preprocessing:
    """From the image processor beside the model; without one, the size of the config and mean = std = 0.5."""
    from transformers import AutoImageProcessor

    vision = getattr(config, "vision_config", config)
    wanted = _pair(getattr(vision, "image_size", None))
    try:
        processor: Any = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return Preprocessing(size=wanted or (DEFAULT_SIDE, DEFAULT_SIDE))
    if getattr(processor, "do_flip_channel_order", False) or not getattr(processor, "do_rescale", True):
        raise UnsupportedModelError(f"hf/{name}: its processor wants BGR or unscaled images, which is not supported")
    resized = _pair(getattr(processor, "size", None))
    cropped = _pair(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else None
    size = cropped or resized or wanted or (DEFAULT_SIDE, DEFAULT_SIDE)
    crop = size[0] / resized[0] if cropped and resized else None
    if getattr(processor, "crop_pct", None) and size[0] < SQUASHED_FROM:
        crop = float(processor.crop_pct)  # ConvNeXt's rule: resize to size / crop_pct, cut out the centre
    normalises = getattr(processor, "do_normalize", True)
    resample = getattr(processor, "resample", None)
    return Preprocessing(
        size=size,
        mean=tuple(processor.image_mean or (0.5,) * 3) if normalises else (0.0,) * 3,
        std=tuple(processor.image_std or (0.5,) * 3) if normalises else (1.0,) * 3,
        interpolation=RESAMPLING.get(2 if resample is None else int(resample), "bilinear"),
        crop=crop,
    )


def _build(kind: Any, name: str, config: Any, random: bool) -> Any:
    """A model of that Auto class; with the fused kernel where the class offers it, since that is what is recorded."""
    import torch

    for options in ({"attn_implementation": "sdpa"}, {}):
        try:
            if random:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    return kind.from_config(config, trust_remote_code=False, **options)
            return kind.from_pretrained(name, config=config, trust_remote_code=False, **options)
        except (ValueError, TypeError) as error:
            if "scaled_dot_product_attention" not in str(error) and "sdpa" not in str(error):
                raise
    raise UnsupportedModelError(f"hf/{name} cannot be built")


def load(name: str, random: bool) -> Source:
    """Load a classifier, or a backbone with no head (explained by its embedding), from a folder or the hub."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    path = name if not Path(name).expanduser().exists() else str(Path(name).expanduser())
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise AttnCompareError(
            f"hf/{name}: no such folder with a config.json, and the hub gave nothing ({type(error).__name__}); "
            "give the path of a folder written by save_pretrained"
        ) from error
    architectures = " ".join(getattr(config, "architectures", None) or ())
    classifies = "ForImageClassification" in architectures or (not architectures and bool(config.num_labels))
    kind = AutoModelForImageClassification if classifies else AutoModel
    try:
        model = _build(kind, path, config, random)
    except (OSError, ValueError) as error:
        raise AttnCompareError(f"hf/{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    labels = getattr(config, "id2label", None) or {}
    classes = tuple(str(labels[i]) for i in sorted(labels)) if classifies and labels else None
    note = "randomly initialised" if random else "pretrained"
    return Source(
        f"hf/{name}", model.eval(), _preprocessing(path, config), classes, embedding=not classifies, note=note
    )
