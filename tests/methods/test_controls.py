"""The control maps, which must not depend on the model."""

import math

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.methods.center_map import center_map
from attncompare.methods.edge_map import edge_map
from attncompare.methods.random_map import random_map


def pictures_of(count=2, height=6, width=9, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_edge_map_is_the_sobel_magnitude_of_the_gray_image():
    images = pictures_of()
    actual = edge_map(images)
    for image, row, column in np.ndindex(2, 6, 9):

        def gray(i, j, image=image):
            return float(images[image, :, min(max(i, 0), 5), min(max(j, 0), 8)].double().mean())

        across = down = 0.0
        for step, weight in ((-1, 1), (0, 2), (1, 1)):
            across += weight * (gray(row + step, column + 1) - gray(row + step, column - 1))
            down += weight * (gray(row + 1, column + step) - gray(row - 1, column + step))
        assert actual[image, row, column] == pytest.approx(math.hypot(across, down), abs=1e-5)


def test_edge_map_of_a_flat_image_is_zero():
    assert edge_map(torch.full((1, 3, 6, 9), 0.3)).abs().max() < 1e-6


@pytest.mark.parametrize("sigma", [0.1, 0.25])
def test_center_map_is_a_gaussian_around_the_image_center(sigma):
    actual = center_map(pictures_of(), sigma=sigma)
    for row, column in np.ndindex(6, 9):
        down, right = (row + 0.5) / 6 - 0.5, (column + 0.5) / 9 - 0.5
        expected = math.exp(-(down**2 + right**2) / (2 * sigma**2))
        assert actual[:, row, column].tolist() == pytest.approx([expected, expected], rel=1e-4)


def test_center_map_peaks_at_the_center_and_is_symmetric():
    bump = center_map(pictures_of(height=7, width=7))[0]
    assert bump.argmax() == 24
    torch.testing.assert_close(bump, bump.flip(0, 1))


def test_random_map_is_the_same_for_the_same_image_and_seed():
    assert torch.equal(random_map(pictures_of(), seed=3), random_map(pictures_of(), seed=3))


def test_random_map_differs_between_images_and_between_seeds():
    first, second = random_map(pictures_of())
    assert (first - second).abs().max() > 0.1
    assert (first - random_map(pictures_of(), seed=1)[0]).abs().max() > 0.1


def test_random_map_does_not_depend_on_the_place_in_the_batch():
    images = pictures_of(count=4)
    order = [2, 0, 3, 1]
    assert torch.equal(random_map(images[order]), random_map(images)[order])
    assert torch.equal(random_map(images[2:3]), random_map(images)[2:3])


def test_random_map_ignores_the_global_random_state():
    torch.manual_seed(1)
    first = random_map(pictures_of())
    torch.manual_seed(2)
    assert torch.equal(random_map(pictures_of()), first)


def test_random_map_is_uniform_noise_on_a_coarse_grid_enlarged():
    images = torch.rand(300, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = random_map(images, grid=4)
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(noise.std()) == pytest.approx(1 / math.sqrt(12), abs=0.01)
    smooth = random_map(torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)), grid=4)
    assert smooth.diff(dim=2).abs().max() <= 1 / 16 + 1e-6  # one cell in 16 pixels


@pytest.mark.parametrize("name", ["random_map", "center_map", "edge_map"])
def test_controls_are_the_same_for_every_model_and_target(tiny, pictures, name):
    images = pictures(tiny("cnn"))
    on_cnn = ac.make_explainer(tiny("cnn"), name).explain(images, 0)
    on_vit = ac.make_explainer(tiny("vit"), name).explain(images, 3)
    assert on_cnn.values.shape == (2, 32, 32)
    assert torch.equal(on_cnn.values, on_vit.values)
