"""hf/: classifiers, vision backbones and image-text pairs of transformers, from a hub name or a save_pretrained folder.

A classifier gives logits. A backbone gives its embedding (see `pooled`). A pair of encoders, such as CLIP, gives the
embedding of the image, and its text encoder the embedding of a prompt to compare it with.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from attncompare.errors import AttnCompareError, SpecError, UnsupportedModelError
from attncompare.models.adapter import ModelSource, output_tensor
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.sources.patches import (
    KINDS,
    MakesImages,
    ReadsImages,
    patch_side,
    read_images,
    square_side,
    vision_config,
)
from attncompare.models.sources.processor import DEFAULT_SIDE, pair, preprocessing_of
from attncompare.state import seeded_weights

REFUSED = {
    "imagegpt": "it reads the numbers of color clusters, through which no gradient reaches the pixels",
    "shieldgemma2": "it needs a text prompt with every image",
    "vit_mae": "every pass leaves out patches at random; save its encoder as a ViTModel",
}
"""Model types that take something else than an image, or give another answer each time, and why."""

PADDED = ("siglip", "siglip2")  # read from the last position, so trained on prompts filled up to their full length
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
EMBEDDINGS = ("pooler_output", "image_embeds")


def names() -> list[str]:
    """Hub names are not listed: any folder or hub name is accepted."""
    return []


def pooled(output: Any, *, class_token: bool) -> Tensor:
    """(B,K) the embedding of a backbone: the library's own pooled one, else the class token's row, else the mean.

    The mean is over all positions of the last hidden state, (B,N,K) or (B,K,h,w).
    """
    if isinstance(output, Tensor) or any(isinstance(getattr(output, name, None), Tensor) for name in EMBEDDINGS):
        return output_tensor(output)
    apart = getattr(output, "cls_token_value", None)  # CvT returns its class token beside the map
    hidden: Tensor = output.last_hidden_state if apart is None else apart
    if hidden.ndim == 4:
        return hidden.mean(dim=(2, 3))
    return hidden[:, 0] if class_token else hidden.mean(dim=1)


class ImageSide(nn.Module):
    """The image encoder of a pair: images -> embeddings (B,D), with the modules that its forward pass runs.

    The text encoder is kept out of the module tree, so that nothing takes its layers for the image's.
    """

    def __init__(self, pair_of_encoders: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.embed: Callable[..., Any] = pair_of_encoders.get_image_features
        if pair_of_encoders.config.model_type in KINDS:  # a partial, so that a copy of this module calls its own copy
            self.embed = partial(read_images, self.embed, patch_side(pair_of_encoders.config))
        ran: list[str] = []
        children = dict(pair_of_encoders.named_children())
        hooks = [c.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, c in children.items()]
        with torch.no_grad():
            self.embed(pixel_values=torch.zeros(1, 3, *size))
        for hook in hooks:
            hook.remove()
        for name in dict.fromkeys(ran):
            self.add_module(name, children[name])

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalized -> (B,D), before any normalization of its length."""
        return output_tensor(self.embed(pixel_values=images))


def _text_encoder(model: Any, path: str, name: str) -> Callable[[str], Tensor]:
    """Prompt -> (D,) embedding; the tokenizer beside the model is read at the first prompt."""

    @cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer
        from transformers.utils.hub import cached_file

        why = SpecError(f"hf/{name} has no tokenizer beside it, so it cannot read a text target")
        try:
            found = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except Exception as error:
            raise why from error
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        # Without its files the library makes one that knows hardly a word.
        if not any(cached_file(path, file, **quiet) for file in found.vocab_files_names.values()):
            raise why
        return found

    @cache
    def encode(prompt: str) -> Tensor:
        config, read = model.config.text_config, tokenizer()
        most = min(read.model_max_length, getattr(config, "max_position_embeddings", read.model_max_length))
        padding = {"padding": "max_length", "max_length": most} if model.config.model_type in PADDED else {}
        tokens = read(prompt, return_tensors="pt", **padding)
        if tokens["input_ids"].shape[1] > most:
            raise SpecError(f"target 'text:{prompt}' has {tokens['input_ids'].shape[1]} tokens; hf/{name} reads {most}")
        with torch.inference_mode(False), torch.no_grad():  # kept for later calls, which may need gradients
            return output_tensor(model.get_text_features(**tokens))[0]

    return encode


def _preprocessing(path: str, name: str, config: Any) -> tuple[Preprocessing, str]:
    """From the image processor beside the model, with a note where it is known to do otherwise.

    Without a processor: the size of the config and mean = std = 0.5.
    """
    from transformers import AutoImageProcessor

    patched = config.model_type in KINDS
    size = pair(square_side(config) if patched else getattr(vision_config(config), "image_size", None))
    try:
        processor: Any = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):
        return Preprocessing(size=size or (DEFAULT_SIDE, DEFAULT_SIDE)), ""
    if patched and processor.patch_size != patch_side(config):
        raise UnsupportedModelError(
            f"hf/{name}: its image processor cuts patches of {processor.patch_size} pixels, the model reads patches of "
            f"{patch_side(config)}; save the processor that the model was trained with"
        )
    processor = MakesImages(processor) if patched else processor
    return preprocessing_of(processor, size, f"hf/{name}")


def _build(kind: Any, path: str, config: Any, seed: int | None, **more: object) -> tuple[Any, list[str]]:
    """A model of that class in float32, and the weights its folder lacks; with the fused kernel where it has one.

    seed: draw all weights with it; None reads those of the folder.
    """
    automatic = hasattr(kind, "from_config")
    create = kind.from_config if automatic else kind._from_config
    config._attn_implementation = None  # the library's choice; what a folder names may need a package that is not here
    more |= {"dtype": torch.float32} | ({"trust_remote_code": False} if automatic else {})
    if seed is not None:
        with seeded_weights(seed):
            return create(config, **more), []
    model, info = kind.from_pretrained(path, config=config, output_loading_info=True, **more)
    return model, sorted(info["missing_keys"])


def _model(path: str, name: str, config: Any, seed: int | None) -> tuple[Any, bool]:
    """(model, whether it is a classifier), with no weight left at random that the folder should hold."""
    import transformers

    architectures = " ".join(getattr(config, "architectures", None) or ())
    classifies = "ForImageClassification" in architectures or (not architectures and bool(config.num_labels))
    kind = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    if architectures.endswith("VisionModelWithProjection"):  # the automatic class would drop the projection
        kind = getattr(transformers, architectures, kind)
    try:
        model, absent = _build(kind, path, config, seed)
        if absent and all(weight.startswith("pooler.") for weight in absent):  # as in DINO: its class token is read
            model, absent = _build(kind, path, config, seed, add_pooling_layer=False)
    except (OSError, ValueError, ImportError) as error:
        raise AttnCompareError(f"hf/{name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if absent:
        raise AttnCompareError(
            f"hf/{name} holds no weights for {absent[0]} ({len(absent)} tensors in all), which would be random; "
            "fine-tune it first, or add @random"
        )
    return model.eval(), classifies


def load(name: str, random: bool, seed: int = 0) -> ModelSource:
    """Load a classifier, a backbone (explained by its embedding) or a pair of encoders from a folder or the hub."""
    from transformers import AutoConfig

    here = os.path.expanduser(name)
    path = here if os.path.exists(here) else name  # unlike Path.exists no error for a name that no file can have
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise AttnCompareError(
            f"hf/{name}: no such folder with a config.json, and the hub gave nothing ({type(error).__name__}); "
            "give the path of a folder written by save_pretrained"
        ) from error
    if config.model_type in REFUSED:
        raise UnsupportedModelError(f"hf/{name} cannot be explained: {REFUSED[config.model_type]}")
    model, classifies = _model(path, name, config, seed if random else None)
    preprocessing, departs = _preprocessing(path, name, config)
    note = "randomly initialized" if random else "pretrained"
    note = f"{note}; {departs}" if departs else note
    source = ModelSource(f"hf/{name}", model, preprocessing, embedding=not classifies, note=note)
    if hasattr(model, "get_text_features") and hasattr(model, "get_image_features"):
        try:
            side = ImageSide(model, source.preprocessing.size)
        except Exception as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UnsupportedModelError(f"hf/{name}: its image encoder does not run on an image: {why}") from error
        return replace(source, module=side.eval(), encode_text=_text_encoder(model, path, name))
    if model.main_input_name not in ("pixel_values", "inputs"):
        raise UnsupportedModelError(f"hf/{name} cannot be explained: it takes {model.main_input_name}, not images")
    if config.model_type in KINDS:
        source = replace(source, module=ReadsImages(model, patch_side(config)).eval())
    if not classifies:
        parts = {part for parameter, _ in model.named_parameters() for part in parameter.split(".")}
        return replace(source, output_fn=partial(pooled, class_token=bool(parts & set(CLASS_TOKENS))))
    labels = getattr(config, "id2label", None) or {}
    return replace(source, class_names=tuple(str(labels[i]) for i in sorted(labels)) or None)
