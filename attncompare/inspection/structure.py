"""Where a model keeps its features, tokens, attention, squeeze-and-excitation layers and classifier, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from attncompare.inspection.layout import TokenLayout, WindowGeometry

Family = Literal["cnn", "vit", "hierarchical"]
Part = Literal[
    "feature_layer",
    "classifier",
    "se_layers",
    "attention",
    "class_attention",
    "windows",
    "hierarchy",
    "token_blocks",
    "relus",
]
"""What a model may lack.

feature_layer: a layer that lies on the image. classifier: averaged features and a linear layer. se_layers: channel
attention. attention: attention that flows between tokens. class_attention: attention that the score is read from.
windows: attention inside windows. hierarchy: all of the attention inside windows. token_blocks: blocks that hand their
tokens to the next. relus: no activation functions but ReLUs.
"""


@dataclass(frozen=True)
class Classifier:
    """A linear layer on globally averaged features: the module whose output is averaged, and the linear layer.

    rectified: whether it is the positive part of that output that is averaged (a last ReLU that is no module).
    """

    feature_module: str
    linear: str
    rectified: bool = False


@dataclass(frozen=True)
class SELayer:
    """A channel-attention layer: the module that multiplies its channels by gates, and the one that makes the gates."""

    layer: str
    values: str


@dataclass(frozen=True)
class WindowBlock:
    """A block whose attention stays inside windows (or one window, the whole image, at a resolution of its own).

    axes: how the recorded weights are laid out: "bw" for (B*W,heads,q,k), "bhw" for (B,heads,W,q,k), "bwh" for
    (B,W,heads,q,k).
    """

    path: str
    geometry: WindowGeometry
    axes: Literal["bw", "bhw", "bwh"]

    def split(self, values: Tensor) -> Tensor:
        """Recorded weights -> (B,W,heads,q,k)."""
        if self.axes == "bw":
            return values.reshape(-1, len(self.geometry.keys), *values.shape[1:])
        return values.transpose(1, 2) if self.axes == "bhw" else values


@dataclass(frozen=True)
class ModelStructure:
    """Module paths of what a model can supply; found by a probing pass, or given.

    attention_blocks: the modules whose attention is recorded, shallow to deep. pooling_blocks: those among them whose
    one query is the class token or a pooling query. attention_tokens: how rows and columns of attention lie on the image
    where that differs from `tokens`, the layout of the sequence. windows: blocks of windowed or multi-scale attention.
    token_layouts: every other way in which token sequences were seen to lie on the image. token_blocks: the transformer
    blocks around `attention_blocks`, each of which returns the tokens that the next one takes.
    stages: one feature layer per resolution, shallow to deep. missing: why a part was not found, in words for the user.
    outputs: K, the number of classes or embedding dimensions.
    """

    family: Family
    feature_layer: str | None
    tokens: TokenLayout | None = None
    attention_blocks: tuple[str, ...] = ()
    pooling_blocks: tuple[str, ...] = ()
    attention_tokens: TokenLayout | None = None
    windows: tuple[WindowBlock, ...] = ()
    token_layouts: tuple[TokenLayout, ...] = ()
    token_blocks: tuple[str, ...] = ()
    classifier: Classifier | None = None
    se_layers: tuple[SELayer, ...] = ()
    stages: tuple[str, ...] = ()
    missing: Mapping[Part, str] = field(default_factory=dict)
    outputs: int = 0
