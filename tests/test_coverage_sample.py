"""A sample of the coverage sweep: one model of each of many families, examined as benchmarks/coverage.py does it."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

SUPPLIED = {
    "timm/convnext_zepto_rms": "features",
    "timm/cpubone_nano": "features",
    "timm/crossvit_tiny_240": "features",
    "timm/cs3darknet_focus_s": "features cam",
    "timm/cspnext_tiny": "features cam gates",
    "timm/edgenext_xx_small": "features",
    "timm/efficientvit_b0": "features",
    "timm/ghostnet_050": "features gates",
    "timm/gmlp_ti16_224": "features cam",
    "timm/iformer_t": "features windows hierarchy",
    "timm/inception_next_atto": "features",
    "timm/legacy_seresnet18": "features cam gates",
    "timm/levit_128s": "features windows hierarchy",
    "timm/test_efficientnet": "features cam gates",
    "timm/test_vit": "features class-attention rollout",
    "torchvision/alexnet": "features",
    "torchvision/mnasnet0_5": "features cam",
    "torchvision/mobilenet_v3_small": "features gates",
    "torchvision/regnet_y_400mf": "features cam gates",
    "torchvision/resnet18": "features cam",
    "torchvision/shufflenet_v2_x0_5": "features cam",
    "torchvision/squeezenet1_1": "features",
    "transformers/Aimv2Model": "features class-attention rollout embedding",
    "transformers/AltCLIPModel": "features class-attention rollout embedding",
    "transformers/BeitForImageClassification": "features class-attention rollout",
    "transformers/BitForImageClassification": "features cam",
    "transformers/CLIPModel": "features class-attention rollout embedding",
    "transformers/ConvNextV2ForImageClassification": "features",
    "transformers/DINOv3ViTModel": "features class-attention rollout embedding",
    "transformers/Data2VecVisionForImageClassification": "features class-attention rollout",
    "transformers/DeiTForImageClassificationWithTeacher": "features class-attention rollout",
    "transformers/Dinov2WithRegistersForImageClassification": "features class-attention rollout",
    "transformers/DonutSwinForImageClassification": "features cam windows hierarchy",
    "transformers/EfficientNetForImageClassification": "features cam gates",
    "transformers/FocalNetForImageClassification": "features cam",
    "transformers/HGNetV2ForImageClassification": "features cam",
    "transformers/IJepaForImageClassification": "features cam class-attention rollout",
    "transformers/ImageGPTForImageClassification": "-",
    "transformers/MobileNetV1ForImageClassification": "features cam",
    "transformers/MobileViTForImageClassification": "features cam",
    "transformers/PoolFormerForImageClassification": "features cam",
    "transformers/PvtForImageClassification": "features class-attention",
    "transformers/RegNetForImageClassification": "features cam gates",
    "transformers/SegformerForImageClassification": "features cam windows",
    "transformers/SiglipForImageClassification": "features cam class-attention rollout",
    "transformers/SiglipVisionModel": "features class-attention rollout embedding",
    "transformers/SwiftFormerForImageClassification": "features",
    "transformers/Swinv2ForImageClassification": "features cam windows hierarchy",
    "transformers/TextNetForImageClassification": "features cam",
    "transformers/TimmWrapperForImageClassification": "features class-attention rollout",
    "transformers/ViTForImageClassification": "features class-attention rollout",
}
"""Model -> what it supplies, in the words of `attncompare list models`; "-" when it is refused altogether."""

ALWAYS = ("gradients", "image_gradients", "black_box", "localised", "logits_difference")


@pytest.fixture(scope="module")
def benchmark_script():
    """A script of benchmarks/, which is no package, as a module; on one thread, which is faster for such small models."""
    folder, threads = str(Path(__file__).parents[1] / "benchmarks"), torch.get_num_threads()
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)
    sys.path.remove(folder)


@pytest.mark.parametrize("name", SUPPLIED)
def test_a_model_of_this_family_works_unconfigured_or_says_why_not(name, benchmark_script):
    coverage, checks = benchmark_script("coverage"), benchmark_script("coverage_checks")
    library, _, model = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = dict(checks.examine(coverage.Case(library, model, "")))
    assert not {column: cell for column, cell in row.items() if cell.startswith("failed")}
    found = benchmark_script("coverage_table").capabilities_of({"output": "logits", **row})
    assert found == SUPPLIED[name]
    refused = {column for column in ALWAYS if row[column].startswith("refused")}
    assert refused == (set(ALWAYS) if found == "-" else set())
