"""Grad-CAM++, XGrad-CAM, Eigen-CAM, input x gradient and attention x gradient, derived again in float64."""

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.errors import SpecError, UnsupportedMethodError
from attncompare.inspection.layout import TokenLayout
from attncompare.methods.attention_x_gradient import attention_x_gradient
from attncompare.methods.eigen_cam import eigen_cam
from attncompare.methods.grad_cam_pp import grad_cam_pp
from attncompare.methods.hires_cam import hires_cam
from attncompare.methods.input_x_gradient import input_x_gradient
from attncompare.methods.xgrad_cam import xgrad_cam

SHAPE = (2, 4, 2, 3)


def tensors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_grad_cam_pp_is_equation_19_with_the_derivatives_of_an_exponential_score():
    """The second and third derivatives of exp(score), score linear in the features, by autograd and term by term."""
    features, gradients = tensors(0, *SHAPE).relu(), tensors(1, *SHAPE)
    expected = np.zeros((2, 2, 3))
    for b in range(2):
        for k in range(4):
            weight = 0.0
            for i in range(2):
                for j in range(3):
                    value = features[b, k, i, j].clone().requires_grad_(True)
                    rest = (features[b] * gradients[b]).sum() - features[b, k, i, j] * gradients[b, k, i, j]
                    score = (value * gradients[b, k, i, j] + rest).exp()
                    (first,) = torch.autograd.grad(score, value, create_graph=True)
                    (second,) = torch.autograd.grad(first, value, create_graph=True)
                    (third,) = torch.autograd.grad(second, value)
                    alpha = second / (2 * second + features[b, k].sum() * third)
                    weight += float(alpha * first.relu() / score)  # the factor exp(score) is common to all
            expected[b] += weight * features[b, k].numpy()
    np.testing.assert_allclose(grad_cam_pp(features, gradients), np.maximum(expected, 0), atol=1e-12)


def test_grad_cam_pp_refuses_channels_whose_sums_are_negative_enough():
    features, gradients = -10 * tensors(0, *SHAPE).abs(), tensors(1, *SHAPE).abs()
    with pytest.raises(UnsupportedMethodError, match="behind a ReLU"):
        grad_cam_pp(features, gradients)


def test_xgrad_cam_weights_a_channel_by_its_gradients_where_it_is_active():
    features, gradients = tensors(0, *SHAPE).relu(), tensors(1, *SHAPE)
    features[0, 2] = 0
    expected = torch.zeros(2, 2, 3, dtype=torch.float64)
    for b in range(2):
        for k in range(4):
            total = features[b, k].sum()
            share = features[b, k] / total if total > 0 else features[b, k]
            expected[b] += (share * gradients[b, k]).sum() * features[b, k]
    found = xgrad_cam(features, gradients)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.sum((1, 2)), hires_cam(features, gradients).sum((1, 2)))


@pytest.mark.parametrize("centered", [False, True])
def test_eigen_cam_projects_on_the_leading_eigenvector(centered):
    features = tensors(0, *SHAPE).relu()
    found = eigen_cam(features, centered=centered)
    for b in range(2):
        places = features[b].reshape(4, 6).numpy().T
        mean = places.mean(1)
        places = places - places.mean(0) if centered else places
        values, vectors = np.linalg.eigh(places.T @ places)
        assert values[-1] > values[-2] + 1e-6
        expected = places @ vectors[:, -1]
        expected *= np.sign((expected * mean).sum())
        np.testing.assert_allclose(found[b].flatten(), expected, atol=1e-10)


def test_input_x_gradient_of_a_linear_score_sums_to_the_score():
    images, gradients = tensors(0, 2, 3, 4, 5), tensors(1, 2, 3, 4, 5)
    found = input_x_gradient(images, gradients)
    assert found.shape == (2, 4, 5)
    torch.testing.assert_close(found.sum((1, 2)), (images * gradients).sum((1, 2, 3)))


@pytest.mark.parametrize("block", [0, 2, -1])
def test_attention_x_gradient_reads_the_positive_part_of_one_block(block):
    layout = TokenLayout(1, (2, 3), 0)
    attention = [tensors(i, 2, 3, 7, 7).softmax(-1) for i in range(3)]
    gradients = [tensors(9 + i, 2, 3, 7, 7) for i in range(3)]
    expected = torch.zeros(2, 6, dtype=torch.float64)
    for b in range(2):
        for key in range(6):
            for head in range(3):
                product = attention[block][b, head, 0, key + 1] * gradients[block][b, head, 0, key + 1]
                expected[b, key] += max(float(product), 0.0) / 3
    found = attention_x_gradient(attention, gradients, layout, block=block)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-12, rtol=0)
    with pytest.raises(SpecError, match="blocks 0 to 2"):
        attention_x_gradient(attention, gradients, layout, block=3)


@pytest.mark.parametrize("name", ["grad_cam_pp", "xgrad_cam", "eigen_cam"])
def test_the_methods_run_on_a_trained_cnn_and_show_the_object(name):
    from attncompare.data.shapes import render_shape

    model = ac.load_model("demo/cnn")
    samples = [render_shape(index, "test") for index in range(24)]
    images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1).float() / 255 for s in samples])
    masks = torch.stack([torch.from_numpy(s.mask).bool() for s in samples])
    labels = torch.tensor([s.label for s in samples])
    shown = ac.make_explainer(model, name).explain(images, labels)
    full = torch.as_tensor(getattr(shown.resized((64, 64)), "values", shown.resized((64, 64))))
    inside = torch.stack([values[mask].mean() - values[~mask].mean() for values, mask in zip(full, masks, strict=True)])
    assert (inside > 0).float().mean() > 0.8


def test_xgrad_cam_refuses_channels_that_cancel():
    features = torch.tensor([1.0, -1.0, 1e-9, 0.0]).reshape(1, 1, 2, 2)
    with pytest.raises(UnsupportedMethodError, match="cancel to zero"):
        xgrad_cam(features, torch.ones_like(features))
