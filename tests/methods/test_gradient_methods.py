"""Saliency and integrated gradients, derived again with loops."""

import numpy as np
import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.errors import SpecError
from attncompare.methods.saliency import saliency

CLASS = 2


def smooth_model():
    """A net without kinks, so that sums over the path converge quickly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return ac.wrap_model(net, size=(8, 10), name="smooth")


def score(model, images):
    return model.forward(images)[:, CLASS]


def gradient_at(model, images):
    images = images.clone().requires_grad_(True)
    return torch.autograd.grad(score(model, images).sum(), images)[0]


def riemann_sum(model, images, start, steps):
    """(x - x0) times the mean of the gradients at the middle of each step, summed over colors, one step at a time."""
    total = torch.zeros_like(images, dtype=torch.float64)
    for step in range(steps):
        total += gradient_at(model, start + (step + 0.5) / steps * (images - start)).double() / steps
    return ((images - start).double() * total).sum(dim=1)


def test_saliency_is_the_largest_absolute_gradient_over_the_colors():
    gradients = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actual = saliency(gradients)
    for image, row, column in np.ndindex(2, 4, 5):
        assert actual[image, row, column] == max(abs(float(gradients[image, color, row, column])) for color in range(3))


@pytest.mark.parametrize("name", ["cnn", "vit", "hf_vit"])
def test_saliency_of_a_model_is_its_plain_gradient_in_pixel_space(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    plain = images.clone().requires_grad_(True)
    logits = model.module((plain - 0.5) / 0.5)
    logits = getattr(logits, "logits", logits)
    expected = torch.autograd.grad(logits[:, CLASS].sum(), plain)[0].abs().amax(dim=1)
    actual = ac.make_explainer(model, "saliency").explain(images, CLASS).values
    torch.testing.assert_close(actual, expected, atol=1e-5 * float(expected.max()), rtol=0)


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_integrated_gradients_equal_a_slow_riemann_sum(pictures, baseline):
    model = smooth_model()
    images = pictures(model)
    options = {"rule": "riemann_middle", "n_steps": 7, "baseline": baseline}
    actual = ac.make_explainer(model, "integrated_gradients", **options).explain(images, CLASS)
    expected = riemann_sum(model, images, torch.full_like(images, baseline), 7)
    np.testing.assert_allclose(actual.values, expected, atol=1e-6)


def test_integrated_gradients_converge_to_the_integral(pictures):
    model = smooth_model()
    images = pictures(model)
    actual = ac.make_explainer(model, "integrated_gradients").explain(images, CLASS)
    expected = riemann_sum(model, images, torch.zeros_like(images), 400)
    np.testing.assert_allclose(actual.values, expected, atol=1e-5 * float(expected.abs().max()) + 1e-6)


def test_integrated_gradients_sum_to_the_change_of_the_score(pictures):
    model = smooth_model()
    images = pictures(model)
    shown = ac.make_explainer(model, "integrated_gradients").explain(images, CLASS)
    change = (score(model, images) - score(model, torch.zeros_like(images))).detach()
    assert (change.abs() > 1e-2).all()
    torch.testing.assert_close(shown.values.sum(dim=(1, 2)), change, atol=1e-5, rtol=0)
    assert shown.detail["convergence_delta"].abs().max() < 1e-5


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_the_convergence_delta_is_what_is_left_of_completeness(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    options = {"n_steps": 3, "rule": "riemann_middle"}
    shown = ac.make_explainer(model, "integrated_gradients", **options).explain(images, CLASS)
    change = (score(model, images) - score(model, torch.zeros_like(images))).detach()
    left = shown.values.sum(dim=(1, 2)) - change
    assert left.abs().max() > 1e-4  # three steps are too few: there is something to report
    torch.testing.assert_close(shown.detail["convergence_delta"].float(), left, atol=1e-5, rtol=1e-4)


def test_more_steps_bring_integrated_gradients_closer_to_completeness(tiny, pictures):
    model = tiny("vit")
    images = pictures(model)
    deltas = [
        ac.make_explainer(model, "integrated_gradients", n_steps=steps).explain(images).detail["convergence_delta"]
        for steps in (2, 30)
    ]
    assert deltas[1].abs().max() < deltas[0].abs().max() / 10


def test_the_size_of_the_passes_does_not_change_integrated_gradients(tiny, pictures):
    model = tiny("vit")
    images = pictures(model, count=3)
    small, large = (
        ac.make_explainer(model, "integrated_gradients", n_steps=6, internal_batch_size=batch).explain(images).values
        for batch in (1, 32)
    )
    torch.testing.assert_close(small, large, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("n_steps", 0, ""),
        ("n_steps", 2.5, "int"),
        ("rule", "simpson", "gausslegendre"),
        ("baseline", "blur", "float"),
    ],
)
def test_wrong_option_values_are_refused_by_name(tiny, option, value, message):
    with pytest.raises(SpecError, match=rf"integrated_gradients\.{option} must .*{message}"):
        ac.make_explainer(tiny("cnn"), "integrated_gradients", **{option: value})
