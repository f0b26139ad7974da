"""Finer-CAM."""

import torch
from torch import Tensor, nn

from attncompare.errors import UnsupportedMethodError
from attncompare.methods._base import method


@method(
    reference="Zhang et al., arXiv:2501.11309, equations 4 and 5; weights as in the authors' code",
    meaning={
        "alpha": "how much of a similar class's logit is subtracted; 0 is Grad-CAM",
        "rivals": "how many classes, those with the nearest logits, the target is compared with",
    },
    limits={"alpha": (0, 100), "rivals": (1, 1000)},
)
def finer_cam(
    images: Tensor,
    target: Tensor,
    class_scores: Tensor,
    forward: nn.Module,
    feature_layer: nn.Module,
    *,
    alpha: float = 1.0,
    rivals: int = 3,
) -> Tensor:
    """Grad-CAM, by Captum, of what sets the target apart: its logit less those of similar classes, by probability."""
    from captum.attr import LayerGradCam

    if class_scores.shape[1] < 2:
        raise UnsupportedMethodError("finer_cam compares classes; this model has one")
    distance = (class_scores - class_scores.gather(1, target[:, None])).abs()
    distance.scatter_(1, target[:, None], torch.inf)
    nearest = distance.argsort(dim=1, stable=True)[:, : min(rivals, class_scores.shape[1] - 1)]

    def difference(x: Tensor) -> Tensor:
        outputs = forward(x)
        chosen = outputs.gather(1, nearest).softmax(dim=1)
        apart = outputs.gather(1, target[:, None]) - alpha * outputs.gather(1, nearest)
        return torch.sum(chosen * apart, dim=1)

    attribution: Tensor = LayerGradCam(difference, feature_layer).attribute(
        images, relu_attributions=True, attr_dim_summation=True
    )
    return attribution[:, 0].detach()
