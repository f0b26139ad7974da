"""Integrated gradients, by Captum."""

import torch
from torch import Tensor, nn

from attncompare.methods._base import method


@method(
    reference="Sundararajan et al., arXiv:1703.01365, equation 1",
    choices={"rule": ("gausslegendre", "riemann_trapezoid", "riemann_middle")},
    passes_option="n_steps",
    meaning={
        "n_steps": "points on the path from the baseline to the image",
        "baseline": "gray level of the uniform baseline image, in [0, 1]",
        "rule": "how the points and weights of the integral are chosen",
        "internal_batch_size": "interpolated images in one pass; 3 keep a ResNet-50 below 300 MB and cost what 8 cost "
        "(1.1 x on a ViT-Ti)",
    },
    limits={"n_steps": (1, 100_000), "baseline": (0, 1), "internal_batch_size": (1, 100_000)},
)
def integrated_gradients(
    images: Tensor,
    target: Tensor,
    forward: nn.Module,
    *,
    n_steps: int = 50,
    baseline: float = 0.0,
    rule: str = "gausslegendre",
    internal_batch_size: int = 3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient integrated from a black image to the image, times their difference, summed over colors.

    Reports `convergence_delta`: the sum of the attributions less the score difference of image and baseline, which is 0
    for an exact integral.
    """
    from captum.attr import IntegratedGradients

    captum = IntegratedGradients(forward)
    found = [  # image by image, since Captum never makes a pass of fewer images than it is given
        captum.attribute(
            images[i : i + 1],
            baselines=baseline,
            target=target[i : i + 1],
            n_steps=n_steps,
            method=rule,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=True,
        )
        for i in range(len(images))
    ]
    attribution, delta = (torch.cat([one.detach() for one in part]) for part in zip(*found, strict=True))
    return attribution.sum(dim=1), {"convergence_delta": delta}
