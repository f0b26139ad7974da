"""Mean activation."""

from torch import Tensor

from attncompare.methods._base import method
from attncompare.methods.canceling import channel_mean


@method(reference="Zagoruyko & Komodakis, arXiv:1612.03928, section 3.1", class_sensitive=False)
def activation(features: Tensor) -> Tensor:
    """Mean of the features over their channels: where a layer responds at all."""
    return channel_mean(features, "activation")
