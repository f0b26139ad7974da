"""The attribution map and the only place where maps are resized and normalized."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ResizeMode = Literal["bilinear", "nearest"]


def resize_map(values: Tensor, size: tuple[int, int], mode: ResizeMode = "bilinear") -> Tensor:
    """(B,h,w) -> (B,H,W), bilinear without aligned corners unless told otherwise.

    >>> resize_map(torch.ones(1, 2, 2), (4, 4)).shape
    torch.Size([1, 4, 4])
    """
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    corners = False if mode == "bilinear" else None
    return F.interpolate(values[:, None].float(), size=size, mode=mode, align_corners=corners)[:, 0]


def normalize_map(values: Tensor) -> Tensor:
    """(B,h,w) -> (B,h,w) in [0, 1] by the map's own minimum and maximum; a constant map becomes 0.

    >>> normalize_map(torch.tensor([[[1.0, 3.0], [2.0, 5.0]]])).tolist()
    [[[0.0, 0.5], [0.25, 1.0]]]
    """
    low, high = values.amin(dim=(1, 2), keepdim=True), values.amax(dim=(1, 2), keepdim=True)
    span = high - low
    return torch.where(
        span > 0, (values - low) / torch.where(span > 0, span, torch.ones_like(span)), torch.zeros_like(values)
    )


@dataclass(frozen=True)
class AttributionMap:
    """Where a model looked, as computed: not resized, not rectified, not normalized.

    values: (B,h,w) float32, higher is more evidence for the target; channel-space methods give (B,C).
    target: (B,) int64, the explained output; -1 where it is a function of the outputs. passes_forward, passes_backward:
    passes through the model per image; runs of its head alone (ablation_cam, legrad) are not counted. detail: numbers a
    method reports beside its map, each (B,), such as a convergence delta. prompts: the "text:PROMPT" of each image whose
    similarity was explained, () for other targets. probability: (B,) the softmax probability of the target on the clean
    images (or its similarity, or the value of the function); None where no pass over them was needed for the map.
    """

    values: Tensor
    target: Tensor
    model: str = field(default="", kw_only=True)
    method: str = field(default="", kw_only=True)
    options: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    detail: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    prompts: tuple[str, ...] = field(default=(), kw_only=True)
    probability: Tensor | None = field(default=None, kw_only=True)
    passes_forward: float = field(default=0.0, kw_only=True)
    passes_backward: float = field(default=0.0, kw_only=True)

    @property
    def spatial(self) -> bool:
        """Whether the map lies on the image (B,h,w) rather than on the channels (B,C)."""
        return self.values.ndim == 3

    def resized(self, size: tuple[int, int], mode: ResizeMode = "bilinear") -> "AttributionMap":
        """The map at another size (H, W)."""
        return replace(self, values=resize_map(self.values, size, mode))

    def normalized(self) -> "AttributionMap":
        """The map scaled to [0, 1] per image, for display."""
        return replace(self, values=normalize_map(self.values))
