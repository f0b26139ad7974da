"""Tiny models of every kind with seeded random weights, built once and never downloaded."""

import os
from collections.abc import Callable
from functools import cache, partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attncompare as ac
from attncompare.models.adapter import ModelAdapter

CLASSES = 5
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
HF = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def conv_net(**head: nn.Module) -> nn.Module:
    """Two convolutions with in-place ReLUs, global average pooling and one linear layer, so that CAM exists."""
    trunk = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    last = [nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*trunk, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head.get("head", nn.Linear(12, CLASSES)))


class OverwritingNet(nn.Module):
    """As DenseNet does it: what the feature layer returned is overwritten by an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 10, 3, padding=1))
        self.classifier = nn.Linear(10, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        seen = F.relu(self.features(images), inplace=True)
        return self.classifier(seen.mean(dim=(2, 3)))


def timm_vit(**options: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**VIT, **options})


def timm_distilled() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(**VIT)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16}
    return SwinTransformer(**sizes, depths=(1, 1), num_heads=(2, 2), num_classes=CLASSES)


def timm_cait() -> nn.Module:
    from timm.models.cait import Cait

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return Cait(**sizes, num_classes=CLASSES, init_values=1.0)


def timm_xcit() -> nn.Module:
    from timm.models.xcit import Xcit

    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return Xcit(**sizes, num_classes=CLASSES, eta=0.1)


def timm_levit() -> nn.Module:
    from timm.models.levit import Levit

    sizes = {"img_size": 128, "embed_dim": (32, 48), "key_dim": 16, "depth": (1, 1), "num_heads": (2, 2)}
    return Levit(**sizes, num_classes=CLASSES)


def torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": [4, 4]}
    return SwinTransformer(**sizes, num_classes=CLASSES)


def torchvision_maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    sizes = {"input_size": (64, 64), "stem_channels": 16, "partition_size": 4, "block_channels": [32, 32]}
    return MaxVit(**sizes, block_layers=[1, 1], head_dim=4, stochastic_depth_prob=0.0, num_classes=CLASSES)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return VisionTransformer(**sizes, num_classes=CLASSES)


def hf_model(kind: str, **options: object) -> nn.Module:
    """A transformers model by the stem of its class names, such as ViT, with the fused kernel."""
    import transformers

    family = kind.removesuffix("WithTeacher")
    config = getattr(transformers, f"{family}Config")(**HF, num_labels=CLASSES, **options)
    config._attn_implementation = "sdpa"
    return getattr(transformers, f"{family}ForImageClassification{kind.removeprefix(family)}")(config)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "cnn": conv_net,
    "overwriting_cnn": OverwritingNet,
    "embedding_cnn": partial(conv_net, head=nn.Identity()),
    "swin": timm_swin,
    "swin_torchvision": torchvision_swin,
    "maxvit_torchvision": torchvision_maxvit,
    "levit": timm_levit,
    "cait": timm_cait,
    "xcit": timm_xcit,
    "vit": timm_vit,
    "vit_map_pool": partial(timm_vit, global_pool="map", class_token=False),
    "vit_mean": partial(timm_vit, global_pool="avg", class_token=False),
    "vit_registers": partial(timm_vit, reg_tokens=4),
    "vit_distilled": timm_distilled,
    "vit_oblong": partial(timm_vit, img_size=(32, 48)),
    "vit_torchvision": torchvision_vit,
    "embedding_vit": partial(timm_vit, num_classes=0),
    "hf_vit": partial(hf_model, "ViT", intermediate_size=64),
    "hf_deit": partial(hf_model, "DeiT", intermediate_size=64),
    "hf_deit_teacher": partial(hf_model, "DeiTWithTeacher", intermediate_size=64),
    "hf_dinov2_registers": partial(hf_model, "Dinov2WithRegisters", mlp_ratio=2, num_register_tokens=4),
}
SIZES = {"vit_oblong": (32, 48), "maxvit_torchvision": (64, 64), "levit": (128, 128), "xcit": (64, 64)}
SE_CNN = "se_cnn"  # the demo's architecture, loaded by name
HARDLY_VARY = {"levit", "xcit"}  # untrained, their few cells differ at rounding level: probed, not compared
TINY = (*(name for name in BUILDERS if name not in HARDLY_VARY), SE_CNN)


def _stir(module: nn.Module) -> None:
    """Move every weight off its initial value: zero heads, unit norms and nearly uniform attention hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.15 * torch.randn(value.shape, generator=generator)
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value += 0.1 * torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value *= 0.5 + torch.rand(value.shape, generator=generator)


def build_module(name: str) -> nn.Module:
    """A new tiny module in evaluation mode; the same name always gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = BUILDERS[name]()
    _stir(module)
    return module.eval()


def wrap_tiny(name: str) -> ModelAdapter:
    """A new tiny model, wrapped."""
    if name == SE_CNN:
        return ac.load_model("demo/se_cnn@random")
    size = SIZES.get(name, (32, 32))
    return ac.wrap_model(build_module(name), size=size, name=f"tiny/{name}", embedding=name.startswith("embedding"))


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], ModelAdapter]:
    """A tiny model by name, shared by all tests: leave it as found."""
    return cache(wrap_tiny)


@pytest.fixture(params=TINY)
def each_tiny(request: pytest.FixtureRequest, tiny: Callable[[str], ModelAdapter]) -> ModelAdapter:
    """Each tiny model in turn."""
    return tiny(request.param)


@pytest.fixture
def fresh() -> Callable[[str], ModelAdapter]:
    """A tiny model by name, a new one at each call: a test may change it."""
    return wrap_tiny


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    """The bare module of a tiny model, a new one at each call."""
    return build_module


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    """Seeded random images (count,3,H,W) in [0, 1] at a model's size."""

    def draw(model: ModelAdapter, count: int = 2, seed: int = 0) -> Tensor:
        return torch.rand(count, 3, *model.size, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(autouse=True)
def same_noise_every_time():
    """Whatever a test draws without a generator of its own is the same in every run."""
    torch.manual_seed(0)
    np.random.seed(0)
