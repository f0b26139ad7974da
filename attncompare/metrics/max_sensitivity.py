"""Max-sensitivity."""

import torch
from torch import Tensor

from attncompare.metrics._base import Explain, metric


@metric(
    better="lower",
    reference="Yeh et al., arXiv:1901.09392, definition 2.2, relative to the map's own norm; by Captum",
    undefined="the map is zero everywhere",
    bounds=(0, float("inf")),
    meaning={"n_samples": "noisy copies of each image", "radius": "largest change of a channel of a pixel"},
    limits={"n_samples": (1, 100_000), "radius": (1e-6, 1)},
    version=2,
)
def max_sensitivity(
    images: Tensor, explain: Explain, seed: int, *, n_samples: int = 10, radius: float = 0.02
) -> Tensor:
    """Largest relative change of the map when the image changes imperceptibly: max |m(x + e) - m(x)| / |m(x)|.

    e is drawn `n_samples` times, uniformly from [-radius, radius] per channel and pixel, the same for every image, so that a
    value does not depend on the images beside it; x + e is clipped to [0, 1].
    Norms are Euclidean over the raw map. The target stays that of the clean image (an embedding is explained anew).
    """
    from captum.metrics import sensitivity_max

    generator = torch.Generator().manual_seed(seed)
    first: list[Tensor] = []

    def perturb(copies: Tensor) -> Tensor:
        noise = (2 * torch.rand(copies.shape[1:], generator=generator) - 1) * radius
        return (copies + noise.to(copies)).clamp(0, 1)

    def maps_of(inputs: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor]:
        found = explain(inputs[0] if isinstance(inputs, tuple) else inputs, target).double()  # squares stay in range
        first.append(found.detach())
        return (found,)

    everything = torch.arange(len(images), device=images.device)
    # The batch is that of the images: Captum then asks for one e at a time.
    sizes = {"n_perturb_samples": n_samples, "max_examples_per_batch": len(images)}
    found = sensitivity_max(maps_of, images, perturb, target=everything, **sizes)
    zero = first[0].flatten(1).abs().amax(dim=1) == 0
    return torch.where(zero, torch.nan, found).float().cpu()
