import numpy as np
import pytest
import torch
from references.curves import MEAN, blurred_by_hand, delta_response_by_hand, some_images

from attncompare.metrics.perturbation import (
    baseline_images,
    blur_kernel,
)


def test_blur_kernel_is_the_response_to_a_delta_in_a_mirrored_box():
    kernel = blur_kernel().double().numpy()
    np.testing.assert_allclose(kernel, delta_response_by_hand(), atol=1e-7)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert round(kernel.max() / kernel.min(), 2) == 1.14


@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_blur_is_a_convolution_in_normalized_space_with_zero_padding(size):
    image = some_images(1, size, seed=3)
    blurred = baseline_images(image, "blur", MEAN)
    np.testing.assert_allclose(blurred[0].numpy(), blurred_by_hand(image[0].double().numpy()), atol=1e-6)


def test_blurring_the_mean_color_changes_nothing_even_at_the_border():
    flat = torch.tensor(MEAN).reshape(1, 3, 1, 1).expand(1, 3, 16, 12)
    torch.testing.assert_close(baseline_images(flat, "blur", MEAN), flat.contiguous(), rtol=0, atol=1e-6)


def test_mean_and_black_baselines_are_flat():
    images = some_images(2, (5, 4))
    mean = baseline_images(images, "mean", MEAN)
    assert mean.shape == images.shape
    assert torch.equal(mean, torch.tensor(MEAN).reshape(1, 3, 1, 1).expand(2, 3, 5, 4))
    assert torch.equal(baseline_images(images, "black", MEAN), torch.zeros(2, 3, 5, 4))
