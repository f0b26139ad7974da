"""Grad-CAM, by Captum."""

from torch import Tensor, nn

from attncompare.methods._base import method


@method(reference="Selvaraju et al., arXiv:1610.02391, equations 1 and 2", first_pass_is_clean=True)
def grad_cam(images: Tensor, target: Tensor, forward: nn.Module, feature_layer: nn.Module) -> Tensor:
    """ReLU of the channel sum of the features, each channel weighted by its spatially averaged gradient.

    Captum's LayerGradCam reads the features at the tap, as (B,C,h,w) for every family. Used on a bare token or NHWC
    layer it would take tokens or rows for channels and return a wrong map without an error.
    """
    from captum.attr import LayerGradCam

    attribution: Tensor = LayerGradCam(forward, feature_layer).attribute(
        images, target=target, relu_attributions=True, attr_dim_summation=True
    )
    return attribution[:, 0].detach()
