"""What methods that read the mean of a layer's channels have in common: behind a LayerNorm that mean may be nothing."""

from torch import Tensor

from attncompare.errors import UnsupportedMethodError

ROUNDING = 1e-6  # a mean below this share of the largest feature is what is left of sums that cancel


def channel_mean(features: Tensor, method: str, lost: str = "") -> Tensor:
    """(B,h,w): mean of features (B,C,h,w) over their channels, for a method that cannot do without it.

    UnsupportedMethodError where it is rounding all over an image: another device would give it another sign. A layer
    that is silent (all zero) has a mean, zero. method: the name that the error begins with. lost: what the method cannot
    do without the mean, as the words before "the channels".

    >>> import torch
    >>> channel_mean(torch.ones(1, 4, 2, 2), "activation").shape
    torch.Size([1, 2, 2])
    """
    mean = features.mean(dim=1)
    if bool((mean.abs().amax(dim=(1, 2)) < ROUNDING * features.abs().amax(dim=(1, 2, 3))).any()):
        raise UnsupportedMethodError(
            f"{method}: {lost}the channels of this layer cancel to zero, as after a LayerNorm; name another layer"
        )
    return mean
