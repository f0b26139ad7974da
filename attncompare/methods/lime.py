"""LIME, by Captum."""

from collections.abc import Callable

import torch
from torch import Tensor

from attncompare.capture.counting_forward import score_of_image
from attncompare.methods._base import method

RIDGE = 1.0  # penalty of the linear model


@method(
    reference="Ribeiro et al., arXiv:1602.04938, algorithm 1; kernel, width and ridge as in the authors' image code",
    expensive=True,
    passes_option="n_samples",
    meaning={
        "n_samples": "random sets of superpixels",
        "kernel_width": "width of the exponential kernel over the cosine distance to the whole image",
        "baseline": "gray level of superpixels that are off, in [0, 1]",
        "internal_batch_size": "altered copies in one pass",
        "seed": "changes the samples",
    },
    limits={
        "n_samples": (2, 1_000_000), "kernel_width": (1e-3, 100), "baseline": (0, 1),
        "internal_batch_size": (1, 100_000), "seed": (0, 2**62),
    },
)  # fmt: skip
def lime(
    images: Tensor,
    superpixels: Tensor,
    target_score: Callable[[Tensor, Tensor], Tensor],
    *,
    n_samples: int = 1000,
    kernel_width: float = 0.25,
    baseline: float = 0.5,
    internal_batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Coefficient of each superpixel in a linear model of the target's probability around the image."""
    found = []
    for index, (image, labels) in enumerate(zip(images, superpixels, strict=True)):
        score = score_of_image(target_score, index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            found.append(
                _coefficients(score, image, labels, n_samples, internal_batch_size, kernel_width, baseline)[labels]
            )
    return torch.stack(found)


def _coefficients(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    labels: Tensor,
    n_samples: int,
    internal_batch_size: int,
    kernel_width: float,
    baseline: float,
) -> Tensor:
    """(S,) of one image's superpixels."""
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import LimeBase

    count = int(labels.max()) + 1

    def similarity(original: Tensor, altered: Tensor, kept: Tensor, **given: object) -> Tensor:
        distance = 1 - (kept.float().sum() / count).sqrt()  # cosine distance of a 0/1 vector to all ones
        return torch.exp(-(distance**2) / (2 * kernel_width**2))

    def draw(original: Tensor, **given: object) -> Tensor:
        return torch.randint(0, 2, (1, count)).to(original.device)

    def alter(kept: Tensor, original: Tensor, **given: object) -> Tensor:
        return torch.where(kept[0][labels].bool(), original, baseline)

    model = SkLearnRidge(alpha=RIDGE)
    explainer = LimeBase(score, model, similarity, draw, True, alter, None)
    weights: Tensor = explainer.attribute(
        image[None], n_samples=n_samples, perturbations_per_eval=internal_batch_size, num_interp_features=count
    )
    return weights.flatten().to(image)
