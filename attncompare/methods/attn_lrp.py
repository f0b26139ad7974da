"""Layer-wise relevance propagation to the pixels."""

import torch
from torch import Tensor

from attncompare.backward.attn_lrp import attn_lrp as attn_lrp_rules
from attncompare.capture.counting_forward import CountingForward
from attncompare.methods._base import method


@method(
    reference="Achtibat et al., arXiv:2402.05602, equations 6 to 13; gamma rule: Montavon et al. 2019, table 10.1",
    meaning={
        "conv_gamma": "how much positive contributions are favored in convolutions; 0 is the epsilon rule",
        "linear_gamma": "the same in linear layers",
    },
    limits={"conv_gamma": (0, 1e6), "linear_gamma": (0, 1e6)},
)
def attn_lrp(
    images: Tensor, target: Tensor, forward: CountingForward, mean_color: Tensor, *, conv_gamma: float = 0.25,
    linear_gamma: float = 0.05,
) -> Tensor:  # fmt: skip
    """Relevance of each pixel, handed down from the target's logit, summed over the colors.

    For transformers AttnLRP; for CNNs the same rules are LRP-gamma, with batch norm as a linear layer of its own. An image
    of the model's mean color has no relevance. Defaults are those the authors suggest for vision transformers.
    """
    images = images.detach().requires_grad_(True)
    outputs = forward.under(attn_lrp_rules(conv_gamma, linear_gamma), images)
    score = outputs.gather(1, target[:, None]).sum()
    gradient = torch.autograd.grad(score, images)[0]
    return ((images.detach() - mean_color.reshape(1, 3, 1, 1)) * gradient).sum(dim=1)
