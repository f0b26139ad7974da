"""GradientSHAP."""

import torch
from torch import Tensor, nn

from attncompare.methods._base import method


@method(
    reference="Erion et al., arXiv:1906.10670, equation 3; the sampling is that of GradientSHAP (arXiv:1705.07874)",
    passes_option="n_samples",
    meaning={
        "n_samples": "random points for each image",
        "sigma": "standard deviation of noise added to the image, as a share of the range [0, 1] of pixels",
        "seed": "changes the baselines, the points and the noise",
    },
    limits={"n_samples": (1, 100_000), "sigma": (0, 1), "seed": (0, 2**62)},
)
def gradient_shap(
    images: Tensor, target: Tensor, forward: nn.Module, *, n_samples: int = 50, sigma: float = 0.0, seed: int = 0
) -> Tensor:
    """Mean of (image - baseline) times the gradient at a random point between, over random baselines; sum over colors.

    A baseline is an image of one random gray level in [0, 1]. Every image of a batch meets the same draws, so that a map
    does not depend on what it is computed together with.
    """
    total = torch.zeros_like(images)
    for sample in range(n_samples):
        generator = torch.Generator().manual_seed(seed + sample)
        gray, along = torch.rand(2, generator=generator).tolist()
        noise = torch.randn(images.shape[1:], generator=generator).to(images)
        noisy = images + sigma * noise
        point = (gray + along * (noisy - gray)).requires_grad_(True)
        score = forward(point).gather(1, target[:, None]).sum()
        total += (noisy - gray) * torch.autograd.grad(score, point)[0]
    return (total / n_samples).sum(dim=1)
