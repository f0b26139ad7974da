"""Gate-weighted activation."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Hu et al., arXiv:1709.01507, equation 4, summed over channels", class_sensitive=False)
def se_activation(gated_features: Tensor, channel_attention: Tensor) -> Tensor:
    """Channel sum of the features, each channel weighted by its squeeze-and-excitation gate."""
    return (gated_features * channel_attention[:, :, None, None]).sum(dim=1)
