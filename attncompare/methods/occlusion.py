"""Occlusion, by Captum."""

from torch import Tensor, nn

from attncompare.methods._base import method


@method(
    reference="Zeiler & Fergus, arXiv:1311.2901, section 4.2",
    meaning={
        "window": "side of the occluding square as a fraction of the image side",
        "stride": "step of the square as a fraction of its side",
        "baseline": "gray level of the square, in [0, 1]",
        "internal_batch_size": "occluded copies in one pass",
    },
    limits={"window": (0.001, 1), "stride": (0.001, 1), "baseline": (0, 1), "internal_batch_size": (1, 100_000)},
)
def occlusion(
    images: Tensor,
    target: Tensor,
    forward: nn.Module,
    *,
    window: float = 0.2,
    stride: float = 0.5,
    baseline: float = 0.5,
    internal_batch_size: int = 8,
) -> Tensor:
    """Drop of the score when a square covers a place, averaged over the squares that cover it."""
    import torch
    from captum.attr import Occlusion

    height, width = images.shape[2:]
    side = max(1, round(window * height)), max(1, round(window * width))
    step = max(1, round(stride * side[0])), max(1, round(stride * side[1]))
    with torch.no_grad():
        attribution: Tensor = Occlusion(forward).attribute(
            images,
            sliding_window_shapes=(images.shape[1], *side),
            strides=(images.shape[1], *step),
            baselines=baseline,
            target=target,
            perturbations_per_eval=max(1, internal_batch_size // len(images)),
        )
    return attribution.mean(dim=1)
