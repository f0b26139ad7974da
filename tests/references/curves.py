"""Images, maps, scores of known form and the loop of the RISE paper, for the tests of the curve engine."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from attncompare.metrics._base import Evidence

DELETION, INSERTION, LEAST = Evidence.DELETION_CURVE, Evidence.INSERTION_CURVE, Evidence.LEAST_FIRST_CURVE
BOTH = (DELETION, INSERTION)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ((28, 28), (24, 40), (17, 29))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=seeded(seed))


def some_map(count: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn(count, *size, generator=seeded(seed))


def distinct_map(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randperm(size[0] * size[1], generator=seeded(seed)).reshape(1, *size).float()


class SmoothScore:
    """A probability that depends on every pixel and on which image the copy is of; it keeps what it was shown."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.weights = torch.randn(count, 3, *size, generator=seeded(9), dtype=torch.float64)
        self.shown: list[Tensor] = []
        self.which: list[int] = []
        self.batches: list[int] = []

    def of(self, image: np.ndarray, which: int) -> float:
        drive = float((image * self.weights[which].numpy()).sum()) / math.sqrt(image.size)
        return 1 / (1 + math.exp(-3 * drive))

    def __call__(self, images: Tensor, which: Tensor) -> Tensor:
        self.shown += list(images.clone())
        self.which += which.tolist()
        self.batches.append(len(images))
        return torch.tensor([self.of(image.double().numpy(), int(w)) for image, w in zip(images, which, strict=True)])


class LinearScore:
    """The sum of weight x mean color over all pixels: each pixel's part in the score is known exactly."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.double()

    def __call__(self, images: Tensor, which: Tensor) -> Tensor:
        return (images.double().mean(dim=1) * self.weights).sum(dim=(1, 2))


def delta_response_by_hand() -> np.ndarray:
    """A Gaussian of sigma 5, cut at 4 sigma, that runs over a one-pixel signal of length 11 mirrored at its edges."""
    reach = range(-20, 21)
    bell = {t: math.exp(-(t**2) / (2 * 5.0**2)) for t in reach}
    total = sum(bell.values())
    mirrored = [*range(11), *reversed(range(11))]
    line = [sum(bell[t] / total for t in reach if mirrored[(i + t) % 22] == 5) for i in range(11)]
    return np.outer(line, line)


def blurred_by_hand(image: np.ndarray) -> np.ndarray:
    """(3,H,W): normalize, pad with 5 zeros, sum each 11 x 11 window under the kernel, undo the normalization."""
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    normal, kernel = (image - mean) / std, delta_response_by_hand()
    padded = np.pad(normal, ((0, 0), (5, 5), (5, 5)))
    found = np.zeros_like(normal)
    for channel, row, column in itertools.product(*map(range, image.shape)):
        found[channel, row, column] = (padded[channel, row : row + 11, column : column + 11] * kernel).sum()
    return found * std + mean


def mean_image_by_hand(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array(MEAN)[:, None, None], image.shape).copy()


def single_pixels(values: np.ndarray) -> list[tuple[float, list[tuple[int, int]]]]:
    return [(values[row, column], [(row, column)]) for row in range(len(values)) for column in range(len(values[0]))]


def cells_of_14(values: np.ndarray) -> list[tuple[float, list[tuple[int, int]]]]:
    height, width = values.shape
    units = []
    for i, j in itertools.product(range(14), range(14)):
        rows = range(i * height // 14, (i + 1) * height // 14)
        columns = range(j * width // 14, (j + 1) * width // 14)
        pixels = list(itertools.product(rows, columns))
        units.append((sum(values[pixel] for pixel in pixels) / len(pixels), pixels))
    return units


def curve_by_hand(score, start: np.ndarray, finish: np.ndarray, units, steps: int) -> list[float]:
    """The loop of the RISE paper: change the next most relevant units, show the image, note the score."""
    ranked = sorted(units, key=lambda unit: -unit[0])
    image, changed, curve = start.copy(), 0, [score(start)]
    for step in range(1, steps + 1):
        while changed < round(step * len(units) / steps):
            for row, column in ranked[changed][1]:
                for channel in range(3):
                    image[channel, row, column] = finish[channel, row, column]
            changed += 1
        curve.append(score(image))
    return curve


REFERENCES = {
    # deletion baseline, insertion start, units, number of steps for H x W
    "rise": (mean_image_by_hand, blurred_by_hand, single_pixels, lambda h, w: math.ceil(h * w / 224)),
    "rise-fast": (mean_image_by_hand, blurred_by_hand, single_pixels, lambda h, w: min(28, math.ceil(h * w / 224))),
    "grid14": (blurred_by_hand, blurred_by_hand, cells_of_14, lambda h, w: 28),
}


def black_by_hand(image: np.ndarray) -> np.ndarray:
    return np.zeros_like(image)


REMOVALS = {
    # what replaces removed units, units, number of steps, points that are scored
    "rise": (mean_image_by_hand, single_pixels, lambda h, w: math.ceil(h * w / 224), None),
    "rise-fast": (mean_image_by_hand, single_pixels, lambda h, w: min(28, math.ceil(h * w / 224)), None),
    "grid14": (blurred_by_hand, cells_of_14, lambda h, w: 28, None),
    "chefer": (black_by_hand, single_pixels, lambda h, w: 10, 10),
    "srg": (mean_image_by_hand, cells_of_14, lambda h, w: 28, None),
}
