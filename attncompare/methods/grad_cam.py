"""Grad-CAM, by Captum on the shared pass."""

from torch import Tensor, nn

from attncompare.methods._base import method


@method(reference="Selvaraju et al., arXiv:1610.02391, equations 1 and 2")
def grad_cam(features: Tensor, feature_gradients: Tensor) -> Tensor:
    """ReLU of the channel sum of the features, each channel weighted by its spatially averaged gradient.

    Captum's LayerGradCam explains a stand-in for the model: a layer that holds the features, and a score whose gradient at
    that layer is the one that the shared pass has computed. So it costs no pass of the model, and sees (B,C,h,w) for every
    family; on a bare token or NHWC layer it would take tokens or rows for channels and return a wrong map without an error.
    """
    from captum.attr import LayerGradCam

    layer = nn.Identity()
    stand_in = LayerGradCam(lambda x: (layer(x) * feature_gradients).sum(dim=(1, 2, 3)), layer)
    attribution: Tensor = stand_in.attribute(features, relu_attributions=True, attr_dim_summation=True)
    return attribution[:, 0].detach()
