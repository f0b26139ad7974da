"""The CAM family and plain activations, each derived again with loops in float64 or with plain torch hooks."""

from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

import attncompare as ac
from attncompare.errors import UnsupportedMethodError
from attncompare.methods.activation import activation
from attncompare.methods.cam import cam
from attncompare.methods.channel_attention import channel_attention
from attncompare.methods.eigen_cam import eigen_cam
from attncompare.methods.hires_cam import hires_cam
from attncompare.methods.layer_cam import layer_cam
from attncompare.methods.se_activation import se_activation

CLASS = 3


def tensors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cell_by_cell(formula, images=2, height=2, width=3):
    """(B,h,w) of a formula of (image, row, column)."""
    cells = [[[formula(b, i, j) for j in range(width)] for i in range(height)] for b in range(images)]
    return np.array(cells, dtype=np.float64)


def same_picture(actual, expected):
    """Equal to 1e-5 of the range of the map."""
    expected = np.asarray(expected, dtype=np.float64)
    span = expected.max() - expected.min()
    assert span > 0
    np.testing.assert_allclose(actual, expected, atol=1e-5 * span, rtol=0)


def test_layer_cam_weights_each_value_by_its_own_positive_gradient():
    features, gradients = tensors(0, 2, 4, 2, 3), tensors(1, 2, 4, 2, 3)

    def value(b, i, j):
        return max(0.0, sum(float(features[b, c, i, j]) * max(0.0, float(gradients[b, c, i, j])) for c in range(4)))

    np.testing.assert_allclose(layer_cam(features, gradients), cell_by_cell(value), atol=1e-12)


def test_hires_cam_weights_each_value_by_its_own_gradient():
    features, gradients = tensors(0, 2, 4, 2, 3), tensors(1, 2, 4, 2, 3)

    def value(b, i, j):
        return sum(float(features[b, c, i, j]) * float(gradients[b, c, i, j]) for c in range(4))

    np.testing.assert_allclose(hires_cam(features, gradients), cell_by_cell(value), atol=1e-12)


def test_cam_weights_each_channel_by_the_classifier_row():
    features, weights = tensors(0, 2, 4, 2, 3), tensors(1, 2, 4)

    def value(b, i, j):
        return sum(float(features[b, c, i, j]) * float(weights[b, c]) for c in range(4))

    np.testing.assert_allclose(cam(features, weights), cell_by_cell(value), atol=1e-12)


def test_se_activation_weights_each_channel_by_its_gate():
    features, gates = tensors(0, 2, 4, 2, 3), tensors(1, 2, 4).sigmoid()

    def value(b, i, j):
        return sum(float(features[b, c, i, j]) * float(gates[b, c]) for c in range(4))

    np.testing.assert_allclose(se_activation(features, gates), cell_by_cell(value), atol=1e-12)


def test_activation_is_the_channel_mean():
    features = tensors(0, 2, 4, 2, 3)

    def value(b, i, j):
        return sum(float(features[b, c, i, j]) for c in range(4)) / 4

    np.testing.assert_allclose(activation(features), cell_by_cell(value), atol=1e-12)


READ_THE_MEAN = {
    "activation": (activation, "activation: the channels of this layer cancel to zero, as after a LayerNorm"),
    "eigen_cam": (
        eigen_cam,
        "eigen_cam: the sign of the first principal direction cannot be told because the channels",
    ),
    "eigen_cam, centered": (partial(eigen_cam, centered=True), "eigen_cam: the sign .* as after a LayerNorm"),
}


@pytest.mark.parametrize("kind", READ_THE_MEAN)
def test_channels_that_cancel_in_any_image_are_refused(kind):
    compute, reason = READ_THE_MEAN[kind]
    features = tensors(0, 2, 4, 2, 3).float()
    assert compute(features).isfinite().all()
    features[1] = torch.nn.functional.layer_norm(features[1].permute(1, 2, 0), (4,)).permute(2, 0, 1)
    with pytest.raises(UnsupportedMethodError, match=f"^{reason}.*; name another layer$"):
        compute(features)


@pytest.mark.parametrize("kind", READ_THE_MEAN)
def test_a_layer_that_is_silent_in_an_image_cancels_nothing(kind):
    features = tensors(0, 2, 4, 2, 3)
    features[1] = 0
    found = READ_THE_MEAN[kind][0](features)
    assert found[0].std() > 0 and not found[1].any()


@pytest.mark.parametrize("method", ["activation", "eigen_cam"])
def test_the_mean_behind_a_fresh_norm_is_refused_and_another_layer_works(build, pictures, method):
    module = build("vit")
    with torch.no_grad():
        module.blocks[2].norm1.weight.fill_(1)
        module.blocks[2].norm1.bias.fill_(0)
    model = ac.wrap_model(module, size=(32, 32))
    with pytest.raises(UnsupportedMethodError, match="name another layer"):
        ac.make_explainer(model, method).explain(pictures(model))
    elsewhere = ac.make_explainer(model, method, layer="blocks.1").explain(pictures(model))
    assert elsewhere.values.shape == (2, 4, 4)
    assert elsewhere.values.std() > 0


def test_channel_attention_returns_the_gates_themselves():
    gates = tensors(0, 2, 4).sigmoid()
    assert torch.equal(channel_attention(gates), gates)


def test_the_gates_of_a_model_are_computed_as_its_layer_does(tiny, pictures):
    model = tiny("se_cnn")
    images = pictures(model)
    shown = ac.explain_together(model, ["channel_attention", "se_activation"], images)
    trunk = model.module[:2]((images - 0.5) / 0.25)
    gated = model.module[2][:3](trunk).detach()  # convolution, norm, ReLU: what the last gate multiplies
    layer = model.module[2][3]
    pooled = gated.mean(dim=(2, 3), keepdim=True)
    gates = torch.sigmoid(layer.fc2(torch.relu(layer.fc1(pooled)))).detach()
    torch.testing.assert_close(shown["channel_attention"].values, gates[:, :, 0, 0], atol=1e-6, rtol=1e-5)
    same_picture(shown["se_activation"].values, (gated.double() * gates.double()).sum(dim=1))


@pytest.mark.parametrize("gate", [0, 1, 2, -3])
def test_the_gate_option_chooses_the_layer(tiny, pictures, gate):
    model = tiny("se_cnn")
    chosen = ac.make_explainer(model, "se_activation", gate=gate).explain(pictures(model))
    assert chosen.values.shape[1:] == {0: (64, 64), 1: (32, 32), 2: (16, 16)}[gate % 3]


def published_grad_cam(module, layer, images, target, to_grid):
    """ReLU of sum_k alpha_k A_k with alpha_k the spatial mean of dY/dA_k, from plain hooks and one backward call."""
    kept = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    logits = module((images - 0.5) / 0.5)
    handle.remove()
    gradient = to_grid(torch.autograd.grad(logits[:, target].sum(), kept[0])[0].double())
    features = to_grid(kept[0].detach().double())
    maps = np.zeros((len(images), *features.shape[2:]))
    for image in range(len(images)):
        for channel in range(features.shape[1]):
            maps[image] += float(gradient[image, channel].mean()) * features[image, channel].numpy()
    return np.maximum(maps, 0)


def test_grad_cam_is_the_published_formula_on_a_cnn(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    expected = published_grad_cam(model.module, model.module[5], images, CLASS, lambda x: x)
    same_picture(ac.make_explainer(model, "grad_cam").explain(images, CLASS).values, expected)


@pytest.mark.parametrize("name", ["vit", "vit_oblong", "vit_registers"])
def test_grad_cam_is_the_published_formula_on_a_vit(tiny, pictures, name):
    model = tiny(name)
    images, layout = pictures(model), model.tokens

    def to_grid(tokens):
        patches = tokens[:, layout.prefix :].transpose(1, 2)
        return patches.reshape(len(tokens), -1, *layout.grid)

    expected = published_grad_cam(model.module, model.module.blocks[2].norm1, images, CLASS, to_grid)
    same_picture(ac.make_explainer(model, "grad_cam").explain(images, CLASS).values, expected)


def test_grad_cam_is_the_published_formula_on_channels_last_features(tiny, pictures):
    model = tiny("swin")
    images = pictures(model)
    expected = published_grad_cam(model.module, model.module.norm, images, CLASS, lambda x: x.permute(0, 3, 1, 2))
    same_picture(ac.make_explainer(model, "grad_cam").explain(images, CLASS).values, expected)


def test_bare_captum_takes_tokens_for_channels_without_an_error(tiny, pictures):
    model = tiny("vit")
    images = pictures(model)
    bare = LayerGradCam(model.forward, model.module.blocks[2].norm1).attribute(images, target=CLASS)
    mapped = ac.make_explainer(model, "grad_cam").explain(images, CLASS)
    assert bare.shape == (2, 1, 32)  # one value per embedding channel: no image in it
    assert mapped.values.shape == (2, 4, 4)


def test_bare_captum_takes_image_rows_for_channels_without_an_error(tiny, pictures):
    model = tiny("swin")
    images = pictures(model)
    bare = LayerGradCam(model.forward, model.module.norm).attribute(images, target=CLASS)
    mapped = ac.make_explainer(model, "grad_cam").explain(images, CLASS)
    assert bare.shape != (2, 1, *mapped.values.shape[1:])


@pytest.mark.parametrize("name", ["cnn", "swin", "se_cnn"])
def test_cam_is_hires_cam_times_the_number_of_cells_behind_average_pooling(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    layer = model.structure.classifier.feature_module
    maps = ac.explain_together(model, ["cam", ("hires_cam", {"layer": layer})], images, CLASS)
    height, width = maps["cam"].values.shape[1:]
    same_picture(maps["cam"].values, maps["hires_cam"].values * (height * width))


def test_the_mean_of_cam_and_the_bias_make_the_logit(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    shown = ac.make_explainer(model, "cam").explain(images, CLASS)
    logits = shown.values.mean(dim=(1, 2)) + model.module[8].bias[CLASS]
    torch.testing.assert_close(logits.detach(), model.forward(images)[:, CLASS].detach(), atol=1e-5, rtol=1e-5)


def test_cam_of_an_embedding_follows_the_score_that_is_explained(build, pictures):
    model = ac.wrap_model(build("cnn"), size=(32, 32), embedding=True)
    images = pictures(model, count=7)  # more images than outputs: an image number is no row of the classifier
    maps = ac.explain_together(model, ["cam", "hires_cam"], images)
    height, width = maps["cam"].values.shape[1:]
    same_picture(maps["cam"].values, maps["hires_cam"].values * (height * width))
