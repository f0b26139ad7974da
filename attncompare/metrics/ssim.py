"""Structural similarity of two maps."""

import torch
from torch import Tensor

from attncompare.maps import normalize_map
from attncompare.metrics._base import metric

WINDOW = 11
"""Side of the Gaussian window of sigma 1.5: 2 * int(3.5 * 1.5 + 0.5) + 1, the 11 pixels of the paper."""


@metric(
    better="higher",
    reference="Wang et al., IEEE TIP 13(4), 2004: Gaussian window of sigma 1.5, K = (0.01, 0.03), by scikit-image",
    undefined="one of the maps is constant, or the image is smaller than the window of 11 pixels",
    bounds=(-1, 1),
)
def ssim(maps: Tensor, other_maps: Tensor) -> Tensor:
    """Mean structural similarity of two maps, each scaled to [0, 1] first: 1 for maps that look alike.

    maps, other_maps: (B,H,W) of one size. Symmetric; unlike the rank correlation it compares heights in a neighborhood.
    """
    from skimage.metrics import structural_similarity

    pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(maps, other_maps, strict=True)]
    values = []
    for pair in pairs:
        if min(maps.shape[1:]) < WINDOW or any(one.max() == one.min() for one in pair):
            values.append(torch.nan)
            continue
        first, second = (normalize_map(one[None])[0].numpy() for one in pair)
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        values.append(float(structural_similarity(first, second, data_range=1.0, **how)))
    return torch.tensor(values)
