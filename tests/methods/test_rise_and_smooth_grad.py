"""RISE and SmoothGrad against loops in float64 with the same masks and noise."""

import numpy as np
import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.methods.rise import random_masks

CLASS = 2


def model_of(module, size):
    return ac.wrap_model(module.eval(), size=size, mean=(0.0,) * 3, std=(1.0,) * 3)


def small_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)]
        return nn.Sequential(*layers)


def images_of(count=2, size=(12, 14)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(5))


def test_masks_are_enlarged_binary_grids_shifted_by_less_than_a_cell():
    masks = torch.stack(list(random_masks(400, (28, 42), 7, 0.3, seed=1)))
    assert masks.shape == (400, 28, 42)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1 + 1e-6
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)
    assert (masks[0] - masks[1]).abs().max() > 0.5
    # An enlarged grid changes by at most one step per cell: 1/4 a row (28 / 7), 1/6 a column (42 / 7).
    assert float(masks.diff(dim=1).abs().max()) <= 1 / 4 + 1e-5
    assert float(masks.diff(dim=2).abs().max()) <= 1 / 6 + 1e-5
    again = torch.stack(list(random_masks(400, (28, 42), 7, 0.3, seed=1)))
    assert torch.equal(masks, again)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_rise_is_the_weighted_mean_of_its_masks(batch):
    net, images = small_net(), images_of()
    model = model_of(net, (12, 14))
    options = {"n_masks": 21, "grid": 3, "p_keep": 0.4, "baseline": 0.2, "seed": 9}
    shown = ac.make_explainer(model, "rise", internal_batch_size=batch, **options).explain(images, CLASS)
    expected = np.zeros((2, 12, 14))
    for mask in random_masks(21, (12, 14), 3, 0.4, 9):
        for index in range(2):
            with torch.no_grad():
                behind = images[index].double() * mask + 0.2 * (1 - mask)
                probability = net.double()(behind[None])[0].softmax(0)[CLASS]
            expected[index] += float(probability) * mask.double().numpy() / (21 * 0.4)
    net.float()
    np.testing.assert_allclose(shown.values, expected, atol=1e-5 * np.ptp(expected))
    assert shown.passes_forward == 21


def test_rise_finds_the_pixels_of_an_additive_score():
    class Corner(nn.Module):
        """The first class answers to the brightness of the top left quarter only."""

        def forward(self, images):
            return torch.stack([images[:, :, :8, :8].mean((1, 2, 3)) * 8, images.new_zeros(len(images))], dim=1)

    model = model_of(Corner(), (16, 16))
    images = torch.ones(1, 3, 16, 16)
    shown = ac.make_explainer(model, "rise", n_masks=600, grid=4, baseline=0.0).explain(images, 0).values[0]
    quarters = shown.reshape(2, 8, 2, 8).mean((1, 3))
    assert quarters[0, 0] > quarters.flatten()[1:].max() + 0.03


@pytest.mark.parametrize("samples", [1, 7])
def test_smooth_grad_averages_before_it_takes_absolute_values(samples):
    net, images = small_net(), images_of()
    model = model_of(net, (12, 14))
    shown = ac.make_explainer(model, "smooth_grad", n_samples=samples, sigma=0.3, seed=4).explain(images, CLASS)
    total = torch.zeros(2, 3, 12, 14, dtype=torch.float64)
    net.double()
    for sample in range(samples):
        noise = torch.randn(3, 12, 14, generator=torch.Generator().manual_seed(4 + sample)).double()
        for index in range(2):
            noisy = (images[index].double() + 0.3 * noise)[None].requires_grad_(True)
            total[index] += torch.autograd.grad(net(noisy)[0, CLASS], noisy)[0][0]
    net.float()
    expected = (total / samples).abs().amax(1).numpy()
    np.testing.assert_allclose(shown.values, expected, atol=1e-5 * np.ptp(expected))
    assert (shown.passes_forward, shown.passes_backward) == (samples, samples)


def test_smooth_grad_without_noise_is_saliency(tiny, pictures):
    model = tiny("vit")
    images = pictures(model)
    smooth = ac.make_explainer(model, "smooth_grad", n_samples=2, sigma=0.0).explain(images, CLASS).values
    torch.testing.assert_close(
        smooth, ac.make_explainer(model, "saliency").explain(images, CLASS).values, atol=1e-6, rtol=1e-5
    )


def test_rise_of_a_prompt_or_embedding_weighs_masks_by_the_cosine(tiny, pictures):
    model = tiny("embedding_cnn")
    images = pictures(model)
    shown = ac.make_explainer(model, "rise", n_masks=6, grid=3, internal_batch_size=4).explain(images).values
    with torch.no_grad():
        clean = torch.nn.functional.normalize(model.forward(images), dim=1)
        expected = torch.zeros_like(shown)
        for mask in random_masks(6, model.size, 3, 0.5, 0):
            found = torch.nn.functional.normalize(model.forward(images * mask + 0.5 * (1 - mask)), dim=1)
            expected += (found * clean).sum(1)[:, None, None] * mask / 3
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)
