"""KernelSHAP, by Captum."""

from collections.abc import Callable

import torch
from torch import Tensor

from attncompare.capture.counting_forward import score_of_image
from attncompare.methods._base import method


@method(
    reference="Lundberg & Lee, arXiv:1705.07874, theorem 2",
    expensive=True,
    passes_option="n_samples",
    meaning={
        "n_samples": "random coalitions of superpixels",
        "baseline": "gray level of superpixels that are off, in [0, 1]",
        "internal_batch_size": "altered copies in one pass",
        "seed": "changes the coalitions",
    },
    limits={
        "n_samples": (2, 1_000_000), "baseline": (0, 1), "internal_batch_size": (1, 100_000), "seed": (0, 2**62),
    },
)  # fmt: skip
def kernel_shap(
    images: Tensor,
    superpixels: Tensor,
    target_score: Callable[[Tensor, Tensor], Tensor],
    *,
    n_samples: int = 1000,
    baseline: float = 0.5,
    internal_batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Shapley value of each superpixel for the target's probability, from a regression over random coalitions."""
    from captum.attr import KernelShap

    found = []
    for index, (image, labels) in enumerate(zip(images, superpixels, strict=True)):
        score = score_of_image(target_score, index)
        if int(labels.max()) == 0:  # one player owns the whole change
            found.append((score(image[None]) - score(torch.full_like(image[None], baseline))).expand(labels.shape))
            continue
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            values = KernelShap(score).attribute(
                image[None],
                baselines=baseline,
                feature_mask=labels[None, None],
                n_samples=n_samples,
                perturbations_per_eval=internal_batch_size,
            )
        found.append(values[0, 0])
    return torch.stack(found)
