"""DeepLIFT."""

import torch
from torch import Tensor

from attncompare.backward.deep_lift import deep_lift as deep_lift_rules
from attncompare.capture.counting_forward import CountingForward
from attncompare.errors import UnsupportedMethodError
from attncompare.methods._base import method

INCOMPLETE = (
    1e-4  # share of the attributions' size that rounding may cost; seen: 1e-7 where the rules hold, 1e-2 elsewhere
)

ROUNDING = 1e-6  # of a score, in float32


@method(
    reference="Shrikumar et al., arXiv:1704.02685, equations 1, 11 and 12",
    meaning={"baseline": "gray level of the uniform reference image, in [0, 1]"},
    limits={"baseline": (0, 1)},
)
def deep_lift(
    images: Tensor, target: Tensor, forward: CountingForward, *, baseline: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """How the difference to a reference image is handed down by the rescale rule, summed over the colors.

    The attributions add up to the score's change; `convergence_delta` is what they miss of it. The rules cover linear
    layers, activations and max pooling: where activations are multiplied (attention, gates) or normalized by their own
    statistics, the sum does not add up and UnsupportedMethodError is raised. Captum's rules hold for modules, each used
    once, and lose what overlapping pooling windows share and what a pool right behind a ReLU hands on.
    """
    both = torch.cat([images, torch.full_like(images, baseline)]).requires_grad_(True)
    scores = forward.under(deep_lift_rules(), both).gather(1, target.repeat(2)[:, None])[:, 0]
    multipliers = torch.autograd.grad(scores.sum(), both)[0][: len(images)]
    attributions = (images - baseline) * multipliers
    after, before = scores.detach().chunk(2)
    delta = attributions.sum(dim=(1, 2, 3)) - (after - before)
    allowed = INCOMPLETE * attributions.abs().sum(dim=(1, 2, 3)) + ROUNDING * torch.maximum(after.abs(), before.abs())
    if bool((delta.abs() > allowed).any()):
        worst = int((delta.abs() / allowed).argmax())
        raise UnsupportedMethodError(
            f"deep_lift: the score of image {worst} changes by {float((after - before)[worst]):.3g}, its attributions miss "
            f"{float(delta[worst]):.3g} of that: the rules do not cover products of activations and layer norm"
        )
    return attributions.sum(dim=1), {"convergence_delta": delta}
