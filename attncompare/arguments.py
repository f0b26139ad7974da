"""What a caller hands over, checked before anything runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.models.adapter import ModelAdapter
from attncompare.state import device_of


def check_model(model: ModelAdapter) -> None:
    """Raise SpecError for what is no ModelAdapter, such as a bare module or a model's name."""
    if not isinstance(model, ModelAdapter):
        how = "wrap_model(module, size=(H, W))" if isinstance(model, torch.nn.Module) else "load_model(name)"
        raise SpecError(f"the model is a {type(model).__name__}; make it with {how} first")


def check_images(model: ModelAdapter, images: Tensor) -> Tensor:
    """The images as float32 on the model's device, or an error that says what is wrong with them."""
    check_model(model)
    if not isinstance(images, Tensor):
        raise SpecError(f"images are a {type(images).__name__}; a tensor is needed, as load_images makes it of files")
    if images.layout is not torch.strided or images.is_meta:
        raise SpecError("images are sparse or without values; a dense tensor is needed")
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, *model.size):
        raise SpecError(
            f"images have shape {tuple(images.shape)}; {model.name} needs (B, 3, {model.size[0]}, {model.size[1]})"
        )
    if not images.is_floating_point():
        raise SpecError(f"images are {images.dtype}; float32 in [0, 1] is needed (divide by 255)")
    if not len(images):
        raise SpecError("no images were given")
    images = images.detach()
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise SpecError(f"images range from {low:.3g} to {high:.3g}; [0, 1] is needed (do not normalize them yourself)")
    with torch.inference_mode(False):  # a caller's inference tensors cannot carry gradients; a copy can
        return (images.clone() if images.is_inference() else images).to(device_of(model.module), torch.float32)


def check_names(models: Sequence[ModelAdapter]) -> None:
    """SpecError for two models of one name, whose results could not be told apart."""
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"models: {', '.join(twice)} is listed twice; name models of your own: wrap_model(..., name=)")
