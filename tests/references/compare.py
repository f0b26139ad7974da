"""By how much two maps differ."""

import torch


def difference(actual, expected) -> float:
    """Largest absolute difference, as a share of the range of the expected map of that image; a constant map is an error."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    shares = []
    for one, other in zip(actual, expected, strict=True):
        span = float(other.max() - other.min())
        assert span > 0, "the expected map is constant: nothing can be compared"
        shares.append(float((one - other).abs().max()) / span)
    return max(shares)
