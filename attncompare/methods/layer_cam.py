"""LayerCAM."""

from torch import Tensor

from attncompare.methods._base import method


@method(reference="Jiang et al., IEEE TIP 2021, equations 6 and 7 (LayerCAM)")
def layer_cam(features: Tensor, feature_gradients: Tensor) -> Tensor:
    """ReLU of the channel sum of the features, each weighted by the positive part of its own gradient."""
    return (features * feature_gradients.relu()).sum(dim=1).relu()
