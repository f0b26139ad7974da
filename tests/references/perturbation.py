"""Methods that alter the image, derived in float64: (adapter, images, target, superpixels) -> (B,H,W)."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from references.plain import Plain


def occlusion(adapter, images, target, window=0.2, stride=0.5, baseline=0.5):
    """Mean over the squares that cover a pixel of the drop of the logit; the last square is cut at the border."""
    plain = Plain(adapter)
    height, width = images.shape[2:]
    sides = [max(1, round(window * length)) for length in (height, width)]
    steps = [max(1, round(stride * side)) for side in sides]
    starts = [
        [step * k for k in range(math.ceil((length - side) / step) + 1)]
        for length, side, step in zip((height, width), sides, steps, strict=True)
    ]
    maps = []
    for image, index in zip(images.double(), target, strict=True):
        total, count = np.zeros((height, width)), np.zeros((height, width))
        places = [np.s_[i : i + sides[0], j : j + sides[1]] for i in starts[0] for j in starts[1]]
        altered = []
        for rows, columns in places:
            copy = image.clone()
            copy[:, rows, columns] = baseline
            altered.append(copy)
        with torch.no_grad():
            scores = plain(torch.stack([image, *altered]))[:, int(index)]
        for place, score in zip(places, scores[1:], strict=True):
            total[place] += float(scores[0] - score)
            count[place] += 1
        maps.append(torch.from_numpy(total / count))
    return torch.stack(maps)


def rise(adapter, images, target, masks: list[Tensor], p_keep=0.5, baseline=0.5):
    """The mean of the given masks (H,W), weighted by the probability behind them."""
    plain, maps = Plain(adapter), []
    for image, index in zip(images.double(), target, strict=True):
        total = torch.zeros(image.shape[1:], dtype=torch.float64)
        for mask in masks:
            with torch.no_grad():
                behind = baseline + mask.double() * (image - baseline)
                total += plain.probability(behind[None], int(index))[0] * mask.double()
        maps.append(total / (len(masks) * p_keep))
    return torch.stack(maps)


def without(image: Tensor, labels: Tensor, kept, baseline: float) -> Tensor:
    """The image with the superpixels that are not kept (S,) of one gray."""
    altered = image.clone()
    for label, stays in enumerate(kept):
        if not stays:
            altered[:, labels == label] = baseline
    return altered


def coalition_values(adapter, image: Tensor, labels: Tensor, target: int, coalitions, baseline=0.5) -> list[float]:
    """The target's probability with only the superpixels of each coalition (S,) of 0 and 1."""
    plain = Plain(adapter)
    with torch.no_grad():
        copies = torch.stack([without(image.double(), labels, kept, baseline) for kept in coalitions])
        return [float(one) for part in copies.split(64) for one in plain.probability(part, target)]


def shapley(adapter, image: Tensor, labels: Tensor, target: int, baseline=0.5) -> list[float]:
    """Exact Shapley values: the weighted mean over all coalitions of what a superpixel adds to each."""
    count = int(labels.max()) + 1
    coalitions = list(itertools.product((0, 1), repeat=count))
    value = dict(zip(coalitions, coalition_values(adapter, image, labels, target, coalitions, baseline), strict=True))
    found = []
    for player in range(count):
        total = 0.0
        for kept in coalitions:
            if kept[player]:
                continue
            size = sum(kept)
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            joined = tuple(1 if one == player else stays for one, stays in enumerate(kept))
            total += weight * (value[joined] - value[kept])
        found.append(total)
    return found


def lime(adapter, image: Tensor, labels: Tensor, target: int, samples: np.ndarray, kernel_width=0.25, baseline=0.5):
    """(S,) coefficients of scikit-learn's ridge regression on the given 0/1 samples (n,S), weights as in LIME's own code."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import pairwise_distances

    values = coalition_values(adapter, image, labels, target, samples.tolist(), baseline)
    distance = pairwise_distances(samples, np.ones((1, samples.shape[1])), metric="cosine")[:, 0]
    weights = np.sqrt(np.exp(-(distance**2) / kernel_width**2))
    return Ridge(alpha=1.0).fit(samples, values, sample_weight=weights).coef_


def weighted_least_squares(samples: np.ndarray, values, weights) -> np.ndarray:
    """(S,) coefficients beside an intercept, from the normal equations."""
    design = np.column_stack([np.ones(len(samples)), samples])
    scaled = design * np.asarray(weights)[:, None]
    return np.linalg.solve(design.T @ scaled, scaled.T @ np.asarray(values))[1:]


def drawn_by_lime(count: int, samples: int, seed: int = 0) -> np.ndarray:
    """The sets that LIME draws: 0 or 1 for each superpixel, one set after the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([torch.randint(0, 2, (1, count)) for _ in range(samples)]).numpy()


def drawn_by_kernel_shap(count: int, samples: int, seed: int = 0) -> np.ndarray:
    """The coalitions that Captum draws: all, none, then sizes k by 1 / (k (M - k)) and the k largest of M normal values."""
    sizes = torch.tensor([0.0, *(1 / (k * (count - k)) for k in range(1, count))])
    found = [torch.ones(count), torch.zeros(count)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chance = torch.distributions.Categorical(sizes)
        while len(found) < samples:
            size = int(chance.sample())
            values = torch.randn(1, count)[0]
            found.append((values > values.sort().values[count - size - 1]).float())
    return torch.stack(found).int().numpy()


def kernel_shap(adapter, image: Tensor, labels: Tensor, target: int, samples: int, baseline=0.5) -> np.ndarray:
    """(S,) weighted least squares on the same coalitions, the two ends a million fold."""
    sets = drawn_by_kernel_shap(int(labels.max()) + 1, samples)
    values = coalition_values(adapter, image, labels, target, sets.tolist(), baseline)
    ends = (sets.sum(axis=1) == 0) | (sets.sum(axis=1) == sets.shape[1])
    return weighted_least_squares(sets.astype(float), values, np.where(ends, 1e6, 1.0))
