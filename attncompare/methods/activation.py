"""Mean activation."""

from torch import Tensor

from attncompare.errors import UnsupportedMethodError
from attncompare.methods._base import method


@method(reference="Zagoruyko & Komodakis, arXiv:1612.03928, section 3.1", class_sensitive=False)
def activation(features: Tensor) -> Tensor:
    """Mean of the features over their channels: where a layer responds at all."""
    mean = features.mean(dim=1)
    if bool((mean.abs().amax(dim=(1, 2)) <= 1e-6 * features.abs().amax(dim=(1, 2, 3))).any()):
        raise UnsupportedMethodError(
            "activation: the channels of this layer cancel to zero, as after a LayerNorm; name another layer"
        )
    return mean
