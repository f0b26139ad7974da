"""A tiny model of every image classifier class that transformers has, of its backbones and of its dual encoders.

Each is built from a small configuration with the layer types of the real one, with seeded weights. `save` writes the
folder that `hf/FOLDER` loads, with the image processor of the model type scaled down.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from random_weights import settle, stir
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

SIDE = 32
LABELS = 5
VIT = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
PYRAMID = {
    "image_size": 64,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 2],
}
# The released BEiTs add a bias per relative position to their attention; the configuration's default does not.
BEIT = VIT | {"use_relative_position_bias": True}
PERCEIVER = {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2, "image_size": SIDE}
PERCEIVER |= {"num_self_attention_heads": 2, "num_cross_attention_heads": 1}
LEVIT = {
    "image_size": 128,  # its last stage is at a 64th
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [1, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 3,  # not 2, which CLIP takes for an old mistake and reads as "the largest id"
    "pad_token_id": 0,
}
# As the configurations of timm's own hub checkpoints: they hold the preprocessing too.
TIMM_CONFIG = {
    "input_size": [3, SIDE, SIDE],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.9,
    "interpolation": "bicubic",
}
TIMM_VIT = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
WORDS = ("<pad>", "<s>", "<unk>", "</s>", "a", "photo", "of", "the", "cat", "dog", "car", "bird", "red", "blue")
TIMM_RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_width": 8}
# Siglip2 takes patches, as many as the image has at the size that its processor chose.
SIGLIP2 = {key: value for key, value in VIT.items() if key != "image_size"} | {"num_patches": 16}

CLASSIFIER_CONFIGS: dict[str, dict[str, Any]] = {
    "BeitForImageClassification": BEIT,
    "BitForImageClassification": STAGES | {"embedding_size": 8, "num_groups": 4},
    "CLIPForImageClassification": {"vision_config": VIT},
    "ConvNextForImageClassification": STAGES | {"image_size": 64},
    "ConvNextV2ForImageClassification": STAGES | {"image_size": 64},
    "CvtForImageClassification": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "Data2VecVisionForImageClassification": BEIT,
    "DeiTForImageClassification": VIT,
    "DeiTForImageClassificationWithTeacher": VIT,
    "Dinov2ForImageClassification": DINO,
    "Dinov2WithRegistersForImageClassification": DINO,
    "DonutSwinForImageClassification": SWIN,
    "EfficientNetForImageClassification": {
        "image_size": 64,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.5,
        "hidden_dim": 320,
    },
    "FocalNetForImageClassification": {
        "image_size": 64,
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "HGNetV2ForImageClassification": {
        "embedding_size": 8,
        "stem_channels": [3, 8, 8],
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 16, 24, 32],
        "stage_in_channels": [8, 16, 16, 24],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 16, 24, 32],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "HieraForImageClassification": {
        "image_size": [64, 64],
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 1, 2, 2],
    },
    "IJepaForImageClassification": VIT,
    "ImageGPTForImageClassification": {"n_positions": 64, "vocab_size": 9, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "LevitForImageClassification": LEVIT,
    "LevitForImageClassificationWithTeacher": LEVIT,
    "MetaClip2ForImageClassification": {"vision_config": VIT},
    "MobileNetV1ForImageClassification": {"image_size": 64, "depth_multiplier": 0.25},
    "MobileNetV2ForImageClassification": {"image_size": 64, "depth_multiplier": 0.25},
    "MobileViTForImageClassification": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
        "num_attention_heads": 2,
    },
    "MobileViTV2ForImageClassification": {"image_size": 64, "width_multiplier": 0.25},
    "PerceiverForImageClassificationLearned": PERCEIVER,
    "PerceiverForImageClassificationFourier": PERCEIVER,
    "PerceiverForImageClassificationConvProcessing": PERCEIVER,
    "PoolFormerForImageClassification": STAGES | {"depths": [1, 1, 1, 1]},
    "PPLCNetForImageClassification": {"scale": 0.25, "class_expand": 32},
    "PvtForImageClassification": PYRAMID,
    "PvtV2ForImageClassification": PYRAMID,
    "RegNetForImageClassification": STAGES | {"embedding_size": 8, "groups_width": 8},
    "ResNetForImageClassification": STAGES | {"embedding_size": 8},
    "SegformerForImageClassification": PYRAMID,
    "SiglipForImageClassification": {"vision_config": VIT},
    "Siglip2ForImageClassification": {"vision_config": SIGLIP2},
    "SwiftFormerForImageClassification": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]},
    "SwinForImageClassification": SWIN,
    "Swinv2ForImageClassification": SWIN,
    "TextNetForImageClassification": {
        "image_size": [64, 64],
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 16, 24, 32],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3]]],
        "conv_layer_strides": [[1], [2, 1], [2, 1], [2]],
    },
    "TimmWrapperForImageClassification": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": TIMM_VIT,
        "pretrained_cfg": TIMM_CONFIG,
    },
    "ViTForImageClassification": VIT,
    "ViTMSNForImageClassification": VIT,
}
"""Class name -> what differs from its default configuration."""

UNBUILDABLE: dict[str, str] = {
    "DinatForImageClassification": "needs the package natten, which has to be compiled",
    "ShieldGemma2ForImageClassification": "a language model that answers yes or no: needs a prompt with every image",
}
"""Classes of the same mapping that are left out, and why."""

BACKBONE_CONFIGS: dict[str, dict[str, Any]] = {
    "BeitModel": BEIT,
    "BitModel": CLASSIFIER_CONFIGS["BitForImageClassification"],
    "CLIPVisionModel": VIT,
    "CLIPVisionModelWithProjection": VIT | {"projection_dim": 24},
    "ConvNextModel": CLASSIFIER_CONFIGS["ConvNextForImageClassification"],
    "ConvNextV2Model": CLASSIFIER_CONFIGS["ConvNextV2ForImageClassification"],
    "CvtModel": CLASSIFIER_CONFIGS["CvtForImageClassification"],
    "Data2VecVisionModel": BEIT,
    "DeiTModel": VIT,
    "Dinov2Model": DINO,
    "Dinov2WithRegistersModel": DINO,
    "DINOv3ConvNextModel": STAGES | {"image_size": 64},
    "DINOv3ViTModel": VIT | {"num_register_tokens": 4},
    "EfficientNetModel": CLASSIFIER_CONFIGS["EfficientNetForImageClassification"],
    "FocalNetModel": CLASSIFIER_CONFIGS["FocalNetForImageClassification"],
    "HieraModel": CLASSIFIER_CONFIGS["HieraForImageClassification"],
    "IJepaModel": VIT,
    "LevitModel": LEVIT,
    "MobileNetV2Model": CLASSIFIER_CONFIGS["MobileNetV2ForImageClassification"],
    "MobileViTModel": CLASSIFIER_CONFIGS["MobileViTForImageClassification"],
    "PoolFormerModel": CLASSIFIER_CONFIGS["PoolFormerForImageClassification"],
    "PvtModel": PYRAMID,
    "PvtV2Model": PYRAMID,
    "RegNetModel": CLASSIFIER_CONFIGS["RegNetForImageClassification"],
    "ResNetModel": CLASSIFIER_CONFIGS["ResNetForImageClassification"],
    "SegformerModel": PYRAMID,
    "SiglipVisionModel": VIT,
    "Siglip2VisionModel": SIGLIP2,
    "SwiftFormerModel": CLASSIFIER_CONFIGS["SwiftFormerForImageClassification"],
    "SwinModel": SWIN,
    "Swinv2Model": SWIN,
    "TimmWrapperModel": {
        "architecture": "resnet18",
        "model_args": TIMM_RESNET,
        "pretrained_cfg": TIMM_CONFIG | {"input_size": [3, 64, 64]},
    },
    "ViTModel": VIT,
    "ViTMAEModel": VIT | {"mask_ratio": 0.75},
    "ViTMSNModel": VIT,
}
"""Class name -> configuration of models without a head."""

DUAL_CONFIGS: dict[str, dict[str, Any]] = {
    "AltCLIPModel": {"vision_config": VIT, "text_config": TEXT | {"project_dim": 32}, "projection_dim": 24},
    "Aimv2Model": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 24},
    "ChineseCLIPModel": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 24},
    "CLIPModel": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 24},
    "MetaClip2Model": {"vision_config": VIT, "text_config": TEXT, "projection_dim": 24},
    "SiglipModel": {"vision_config": VIT, "text_config": TEXT},
    "Siglip2Model": {"vision_config": SIGLIP2, "text_config": TEXT},
}
"""Class name -> configuration of pairs of an image and a text encoder."""


def side_of(config: transformers.PreTrainedConfig) -> int:
    """The image side that a tiny configuration is made for."""
    side = getattr(getattr(config, "vision_config", None) or config, "image_size", None) or 64
    return int(side if isinstance(side, int) else side[0])


def build(name: str, changes: Mapping[str, Any]) -> transformers.PreTrainedModel:
    """A model of that class in evaluation mode; the same name always gives the same weights."""
    kind = getattr(transformers, name)
    labels = {"num_labels": LABELS} if "ForImageClassification" in name else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**changes, **labels)).eval()
    side = side_of(model.config)
    stir(model, 0.15)
    settle(model, torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(2)))
    return model


Builders = dict[str, Callable[[], transformers.PreTrainedModel]]

CLASSIFIERS: Builders = {name: partial(build, name, changes) for name, changes in CLASSIFIER_CONFIGS.items()}
BACKBONES: Builders = {name: partial(build, name, changes) for name, changes in BACKBONE_CONFIGS.items()}
DUALS: Builders = {name: partial(build, name, changes) for name, changes in DUAL_CONFIGS.items()}

PROCESSORS: dict[str, str] = {
    "clip_vision_model": "CLIPImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_convnext": "DINOv3ViTImageProcessor",
    "hgnet_v2": "ViTImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "siglip2_vision_model": "Siglip2ImageProcessor",
    "vit_mae": "ViTImageProcessor",
}
"""Model type -> the processor of its released checkpoints, where transformers maps none."""

PROCESSOR_CHANGES: dict[str, dict[str, Any]] = {
    "donut-swin": {"size": {"height": 64, "width": 64}},
    "imagegpt": {"size": {"height": 8, "width": 8}, "clusters": [[i / 4 - 1] * 3 for i in range(8)]},
    "mobilevit": {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    "mobilevitv2": {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    "perceiver": {"size": {"height": SIDE, "width": SIDE}, "crop_size": {"height": 37, "width": 37}},
    "pp_lcnet": {"resize_short": 73, "crop_size": {"height": 64, "width": 64}},
    "siglip2": {"patch_size": 8, "max_num_patches": 16},
    "siglip2_vision_model": {"patch_size": 8, "max_num_patches": 16},
}
"""Model type -> what differs from its processor's defaults, where scaling the sizes is not enough."""


def processor_of(config: transformers.PreTrainedConfig) -> Any:
    """The image processor of a model type, with its own rules and the sizes scaled down; None for timm's own."""
    kind = config.model_type
    if kind == "timm_wrapper":
        return None
    mapped = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)
    build_one = getattr(transformers, mapped["torchvision"] if mapped else PROCESSORS[kind])
    if kind in PROCESSOR_CHANGES:
        return build_one(**PROCESSOR_CHANGES[kind])
    defaults = build_one().to_dict()
    final = defaults["crop_size"]["height"] if defaults.get("do_center_crop") else max(defaults["size"].values())
    sizes = {
        name: {edge: round(value * side_of(config) / final) for edge, value in defaults[name].items()}
        for name in ("size", "crop_size")
        if defaults.get(name)
    }
    return build_one(**sizes)


def tokenizer_of(config: transformers.PreTrainedConfig) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer for the text side of a pair: one token for each of a few words, between <s> and </s>."""
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=config.text_config.max_position_embeddings,
        model_input_names=["input_ids"],
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
    )


def save(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Write weights, configuration, image processor and for pairs a tokenizer, as a released checkpoint has them."""
    model.save_pretrained(folder)
    processor = processor_of(model.config)
    if processor is not None:
        processor.save_pretrained(folder)
    if hasattr(model, "get_text_features"):
        tokenizer_of(model.config).save_pretrained(folder)
