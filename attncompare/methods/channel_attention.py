"""Channel attention."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Hu et al., arXiv:1709.01507, equation 3", class_sensitive=False, space="channel")
def channel_attention(channel_attention: Tensor) -> Tensor:
    """The gate values of a squeeze-and-excitation layer, (B,C): how much each channel is let through."""
    return channel_attention
