"""Superpixels: the parts of an image that black-box methods switch off together."""

import numpy as np
import torch
from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.registry import Option
from attncompare.signals._base import Signal, signal

N_SEGMENTS = Option("n_segments", 50, None, "how many superpixels are wanted", int, (2, 10_000))


@signal(cost="free", options=(N_SEGMENTS,))
class Superpixels(Signal):
    """(B,H,W) int64 labels of SLIC segments, 0 to count - 1 in each image."""

    n_segments: int = 50

    def read(self, of: ForwardPass) -> Tensor:
        return superpixels(of.images, self.n_segments)


def superpixels(images: Tensor, count: int) -> Tensor:
    """(B,3,H,W) in [0, 1] -> (B,H,W) int64 labels 0, 1, ... of about `count` SLIC segments each.

    Pixels are smoothed first (sigma 1): on a noisy image SLIC would join everything into one segment.

    >>> int(superpixels(torch.rand(1, 3, 32, 32), 16).max()) > 1
    True
    """
    from skimage.segmentation import slic

    found = []
    for pixels in images.detach().permute(0, 2, 3, 1).cpu().double().numpy():
        labels = slic(pixels, n_segments=count, compactness=30.0, sigma=1.0, start_label=0, channel_axis=2)
        _, packed = np.unique(labels, return_inverse=True)
        found.append(torch.from_numpy(packed.reshape(labels.shape)))
    return torch.stack(found).to(images.device)
