"""Guided backpropagation."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Springenberg et al., arXiv:1412.6806, section 3.4")
def guided_backprop(guided_gradients: Tensor) -> Tensor:
    """Largest absolute gradient over the colors, where every ReLU passes back positive gradients only.

    Captum's rule holds for nn.ReLU modules; here every ReLU counts, also one that is a function. A network with other
    activations (GELU, SiLU) is refused: on it the rule is the plain gradient, or holds for a part of the network.
    """
    return guided_gradients.abs().amax(dim=1)
