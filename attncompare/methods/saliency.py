"""Saliency."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Simonyan et al., arXiv:1312.6034, section 3.1")
def saliency(image_gradients: Tensor) -> Tensor:
    """Largest absolute gradient over the color channels: which pixels would change the score fastest."""
    return image_gradients.abs().amax(dim=1)
