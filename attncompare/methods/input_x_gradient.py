"""Input times gradient."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Shrikumar et al., arXiv:1605.01713, section 2 (gradient x input); Ancona et al., arXiv:1711.06104")
def input_x_gradient(images: Tensor, image_gradients: Tensor) -> Tensor:
    """Pixel times gradient, summed over colors: the first-order share of each pixel in the score, against black."""
    return (images * image_gradients).sum(dim=1)
