"""Pictures of a page that must hold many: how small they are, and how wrong."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from attncompare.reporting.levels import Levels
from attncompare.reporting.overlay import colorize, scale_of
from attncompare.reporting.pictures import LOSSLESS, gray, photo, webp


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def gradients(seed):
    """(224,224) like a saliency map: most places near 0, few large, neighbors hardly alike."""
    noise = np.abs(np.random.default_rng(seed).normal(size=(224, 224))) ** 1.5
    y, x = np.mgrid[:224, :224] / 224 - 0.5
    return (noise * np.exp(-6 * (x**2 + y**2))).astype(np.float32)


def test_a_map_of_pixels_takes_a_third_of_the_bytes_and_nearly_the_same_colors():
    for seed in range(3):
        values = gradients(seed)
        low, high = scale_of(values)
        uri = webp(np.clip((values - low) / (high - low) * 255, 0, 255))
        assert uri.startswith("data:image/webp;base64,")
        assert len(uri) < 27_000 < 60_000 < len(Levels.of(values).text())
        again = low + decoded(uri)[..., 0].astype(np.float32) / 255 * (high - low)
        drawn = colorize(np.where(decoded(uri)[..., 0] == 255, values.max(), again), values.shape).astype(int)
        assert np.abs(drawn - colorize(values, values.shape)).max(axis=2).mean() < 14


@pytest.mark.parametrize(("side", "kinds"), [(LOSSLESS, ("png", "png")), (LOSSLESS + 1, ("jpeg", "webp"))])
def test_small_photos_lose_nothing_and_large_ones_little(side, kinds):
    y, x = np.mgrid[:side, :side] * 255 // side
    picture = np.stack([x, y, (x + y) // 2], axis=2).astype(np.uint8)
    for exact, kind in zip((True, False), kinds, strict=True):
        uri = photo(picture, exact)
        assert uri.startswith(f"data:image/{kind};base64,")
        assert np.abs(decoded(uri) - picture).mean() <= (0 if kind == "png" else 3)


def test_gray_pictures_are_exact_unless_told_otherwise():
    picture = np.arange(96 * 48, dtype=np.uint8).reshape(96, 48)
    assert (decoded(gray(picture, exact=True))[..., 0] == picture).all()
    assert gray(picture, exact=False).startswith("data:image/webp")
