"""timm/: every classifier and backbone of timm."""

from typing import Any

from torch import nn

from attncompare.errors import AttnCompareError, unknown_name
from attncompare.models.adapter import ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.state import seeded_weights


def vision_transformer(**options: Any) -> nn.Module:
    """A plain timm VisionTransformer."""
    import timm

    model: nn.Module = timm.models.VisionTransformer(**options)
    return model


def create(name: str, seed: int, **options: Any) -> nn.Module:
    """A timm architecture with seeded random weights."""
    import timm

    with seeded_weights(seed):
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def names() -> list[str]:
    """All architecture names of timm."""
    import timm

    return list(timm.list_models())


def file_of(name: str) -> str:
    """The file of timm that an architecture is written in; those of one file are built of the same blocks."""
    import timm

    return str(timm.models.model_entrypoint(name.partition(".")[0]).__module__)


def class_names() -> tuple[str, ...]:
    """The 1,000 ImageNet class names, which timm ships."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(str(info.index_to_description(index, detailed=False)) for index in range(1000))


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Size, mean, std, interpolation and crop from the model's own pretrained configuration."""
    from timm.data import resolve_data_config

    config = resolve_data_config(model=model)
    return Preprocessing(
        size=tuple(config["input_size"][1:]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop=config["crop_pct"] if config["crop_mode"] == "center" else None,
    )


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Build a timm model with its pretrained weights (a tag after the dot chooses them), or with random ones."""
    import timm

    architecture = name.partition(".")[0]
    if architecture not in names():
        raise unknown_name("model", f"timm/{name}", [f"timm/{known}" for known in names()])
    if random:
        try:
            model = create(name, seed)
        except RuntimeError as error:
            tags = [f"timm/{tagged}" for tagged in timm.list_pretrained(f"{architecture}.*")]
            raise unknown_name("model", f"timm/{name}", tags) from error
    else:
        try:
            model = timm.create_model(name, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise AttnCompareError(
                f"the weights of timm/{name} cannot be fetched ({type(error).__name__}); "
                f"use timm/{architecture}@random or timm/{architecture}@path.safetensors"
            ) from error
    embedding = not getattr(model, "num_classes", 1)
    classes = class_names() if getattr(model, "num_classes", 0) == 1000 else None
    note = "randomly initialized" if random else "pretrained"
    return ModelSource(f"timm/{name}", model.eval(), preprocessing_of(model), classes, embedding=embedding, note=note)
