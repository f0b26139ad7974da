"""Squeeze-and-excitation (Hu et al., CVPR 2018): every channel of a feature map, weighted by a gate."""

from typing import Any

from torch import Tensor, nn

from attncompare.errors import SpecError


class SqueezeExcite(nn.Module):
    """Channel attention: x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), one gate in (0, 1) per image and channel.

    channels: C of the (B,C,h,w) feature maps. reduction: the hidden layer has C // reduction units, at least one. With
    biases, as in timm and torchvision; timm also rounds the hidden width to a multiple of 8, the paper does not.
    The last gates are not kept: `ac.wrap_model(net)` finds the layer and the method channel_attention records them.
    Raises SpecError for numbers below 1. Source: arXiv:1709.01507, equations 2 to 4.

    >>> import torch
    >>> layer = SqueezeExcite(32)
    >>> layer(torch.rand(2, 32, 8, 8)).shape, layer.gates(torch.rand(2, 32, 8, 8)).shape, layer.reduce.out_features
    (torch.Size([2, 32, 8, 8]), torch.Size([2, 32]), 2)
    """

    def __init__(self, channels: int, reduction: int = 16, **where: Any) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("reduction", reduction)):
            if type(value) is not int or value < 1:
                raise SpecError(f"squeeze-and-excitation: {name} must be a whole number from 1, not {value!r}")
        hidden = max(1, channels // reduction)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Linear(channels, hidden, **where)
        self.relu = nn.ReLU()
        self.expand = nn.Linear(hidden, channels, **where)
        self.sigmoid = nn.Sigmoid()

    def gates(self, features: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C) in (0, 1): how much each channel is let through."""
        squeezed = self.squeeze(features).flatten(1)
        gates: Tensor = self.sigmoid(self.expand(self.relu(self.reduce(squeezed))))
        return gates

    def forward(self, features: Tensor) -> Tensor:
        """(B,C,h,w) -> the same, every channel times its gate."""
        return features * self.gates(features)[:, :, None, None]
