"""SmoothGrad."""

import torch
from torch import Tensor, nn

from attncompare.methods._base import method


@method(
    reference="Smilkov et al., arXiv:1706.03825, section 3",
    passes_option="n_samples",
    meaning={
        "n_samples": "noisy copies of each image",
        "sigma": "standard deviation of the noise, as a share of the range [0, 1] of pixels",
        "seed": "changes the noise",
    },
    limits={"n_samples": (1, 100_000), "sigma": (0, 1), "seed": (0, 2**62)},
)
def smooth_grad(
    images: Tensor, target: Tensor, forward: nn.Module, *, n_samples: int = 25, sigma: float = 0.15, seed: int = 0
) -> Tensor:
    """Gradient averaged over noisy copies of the image, then its largest absolute value over the colors.

    Every image of a batch meets the same noise, so that a map does not depend on what it is computed together with.
    """
    total = torch.zeros_like(images)
    for sample in range(n_samples):
        generator = torch.Generator().manual_seed(seed + sample)
        noise = torch.randn(images.shape[1:], generator=generator).to(images)
        noisy = (images + sigma * noise).requires_grad_(True)
        score = forward(noisy).gather(1, target[:, None]).sum()
        total += torch.autograd.grad(score, noisy)[0]
    return (total / n_samples).abs().amax(dim=1)
