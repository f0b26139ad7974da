"""Score-CAM."""

import torch
from torch import Tensor, nn

from attncompare.maps import normalize_map, resize_map
from attncompare.methods._base import method


@method(
    reference="Wang et al., arXiv:1910.01279, algorithm 1",
    expensive=True,
    meaning={"internal_batch_size": "masked copies in one pass"},
    limits={"internal_batch_size": (1, 100_000)},
)
def score_cam(
    features: Tensor, images: Tensor, target: Tensor, forward: nn.Module, *, internal_batch_size: int = 8
) -> Tensor:
    """ReLU of the channel sum of the features, weighted by a softmax over the logits behind each channel as a mask.

    A mask is the channel enlarged and scaled to [0, 1]; what it hides becomes black. The score of a black image, which
    the algorithm subtracts, is the same for all channels and falls out of the softmax.
    """
    found = []
    with torch.no_grad():
        for image, channels, index in zip(images, features, target, strict=True):
            logits = []
            for part in channels.split(internal_batch_size):
                masks = normalize_map(resize_map(part, (image.shape[1], image.shape[2])))
                logits.append(forward(image * masks[:, None])[:, index])
            weights = torch.cat(logits).softmax(dim=0)
            found.append(torch.einsum("c,chw->hw", weights, channels))
    return torch.stack(found).relu()
