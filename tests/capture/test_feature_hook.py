"""The feature hook: one shape of features for every family, and nothing changed downstream."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.capture.feature_hook import FeatureHook, hooked
from attncompare.capture.forward_pass import record
from attncompare.errors import CaptureError, UnknownNameError
from attncompare.inspection.layout import TokenLayout, find_layout
from attncompare.signals._base import request

CLASS_TOKEN = TokenLayout(prefix=1, grid=(4, 6), class_token=0)


def features_of(model, images, layer=None, target=None):
    needs = [request(signal, layer=layer) for signal in ("features", "feature_gradients")]
    seen = record(model, images, needs, target)
    return [seen.signals[need] for need in needs]


@pytest.mark.parametrize(
    ("shape", "size", "tokens", "expected"),
    [
        ((1, 12, 7, 7), (224, 224), [], "nchw"),
        ((1, 7, 7, 768), (224, 224), [], "nhwc"),
        ((1, 12, 4, 6), (32, 48), [], "nchw"),
        ((1, 4, 6, 12), (32, 48), [], "nhwc"),
        ((1, 4, 6, 32), (32, 48), [], "nhwc"),
        ((1, 12, 6, 4), (32, 48), [], None),
        ((1, 12, 4, 6), (48, 32), [], None),
        ((1, 12, 6, 4), (48, 32), [], "nchw"),
        ((1, 12, 8, 8), (224, 224), [], "nchw"),
        ((1, 12, 8, 9), (260, 300), [], "nchw"),  # rounded up from 8.1 x 9.4
        ((1, 25, 32), (32, 48), [CLASS_TOKEN], CLASS_TOKEN),
        ((1, 24, 32), (32, 48), [CLASS_TOKEN], None),
        ((1, 25, 32), (32, 48), [], None),
        ((1, 12, 1, 1), (224, 224), [], None),
        ((1, 12), (224, 224), [], None),
        ((1, 2, 300, 300), (224, 224), [], None),
    ],
)
def test_a_layout_is_told_by_the_aspect_of_the_image(shape, size, tokens, expected):
    assert find_layout(torch.Size(shape), size, tokens) == expected


def through(hook, output):
    """What comes out of a layer with that output while it is hooked."""

    class Layer(nn.Module):
        def forward(self):
            return output

    model = nn.Sequential()
    model.add_module(hook.path, Layer())
    with hooked(model, hook):
        passed = model.get_submodule(hook.path)()
        return passed, hook.features


def test_tokens_lie_on_the_grid_row_by_row():
    tokens = torch.arange(25.0).reshape(1, 25, 1).repeat(1, 1, 2)
    passed, features = through(FeatureHook("layer", (32, 48), [CLASS_TOKEN]), tokens)
    assert features.shape == (1, 2, 4, 6)
    for row in range(4):
        for column in range(6):
            assert (features[0, :, row, column] == 1 + 6 * row + column).all()
    assert torch.equal(passed, tokens)


def test_channels_last_features_are_turned_and_turned_back():
    output = torch.randn(2, 4, 6, 12)
    passed, features = through(FeatureHook("layer", (32, 48)), output)
    assert torch.equal(features, output.permute(0, 3, 1, 2))
    assert torch.equal(passed, output)


def test_the_rest_of_a_tuple_passes_through():
    output, rest = torch.randn(2, 12, 4, 6), object()
    passed, features = through(FeatureHook("layer", (32, 48)), (output, rest))
    assert torch.equal(passed[0], output)
    assert passed[1] is rest
    assert torch.equal(features, output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.randn(2, 12, 6, 4), r"shape \(2, 12, 6, 4\), which does not lie on an image of \(32, 48\)"),
        (torch.randn(2, 24, 6), r"shape \(2, 24, 6\).* nor on TokenLayout"),
        (torch.randn(2, 5), r"shape \(2, 5\)"),
        ({"features": 1}, "returns dict, a tensor is needed"),
    ],
)
def test_an_output_that_is_no_picture_is_an_error(output, message):
    with pytest.raises(CaptureError, match=message):
        through(FeatureHook("layer", (32, 48), [CLASS_TOKEN]), output)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("cnn", None, (12, 16, 16)),
        ("cnn", "1", (8, 32, 32)),
        ("swin", None, (32, 4, 4)),
        ("swin", "layers.0", (16, 8, 8)),
        ("vit", None, (32, 4, 4)),
        ("vit", "blocks.0", (32, 4, 4)),
        ("vit", "patch_embed.proj", (32, 4, 4)),
        ("vit_oblong", None, (32, 4, 6)),
        ("vit_distilled", None, (32, 4, 4)),
        ("vit_torchvision", None, (32, 4, 4)),
        ("hf_dinov2_registers", None, (32, 4, 4)),
        ("overwriting_cnn", None, (10, 16, 16)),
    ],
)
def test_features_are_channels_by_height_by_width_in_every_family(tiny, pictures, name, layer, shape):
    model = tiny(name)
    features, gradients = features_of(model, pictures(model), layer)
    assert features.shape == gradients.shape == (2, *shape)
    assert gradients.abs().max() > 0


@pytest.mark.parametrize(
    "name", ["cnn", "swin", "vit", "vit_mean", "vit_torchvision", "hf_vit", "overwriting_cnn", "se_cnn"]
)
def test_the_hook_changes_nothing_downstream(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    with torch.no_grad():
        plain = model.forward(images)
        with hooked(model.module, FeatureHook(model.structure.feature_layer, model.size, model.token_layouts)) as hook:
            assert torch.equal(model.forward(images), plain)
            assert hook.features is not None


def test_a_hooked_layer_gives_its_own_output(tiny, pictures):
    model = tiny("swin")
    images = pictures(model)
    with torch.no_grad():
        expected = model.module.forward_features((images - 0.5) / 0.5).permute(0, 3, 1, 2)
    features, _ = features_of(model, images)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("together", [False, True])
def test_an_in_place_relu_behind_the_tap_cannot_overwrite_the_features(tiny, pictures, together):
    model = tiny("overwriting_cnn")
    images = pictures(model)
    with torch.no_grad():
        expected = model.module.features((images - 0.5) / 0.5)
    needs = [request("features", layer=None)]
    needs += [request("feature_gradients", layer=None), request("image_gradients")] if together else []
    actual = record(model, images, needs).signals[needs[0]]
    assert expected.min() < -0.1  # there is something that the ReLU would cut off
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_gradients_in_front_of_an_in_place_relu_are_those_of_the_formula(tiny, pictures):
    model = tiny("overwriting_cnn")
    images = pictures(model)
    with torch.no_grad():
        before = model.module.features((images - 0.5) / 0.5)
    before.requires_grad_(True)
    score = model.module.classifier(F.relu(before).mean(dim=(2, 3)))[:, 1]
    expected = torch.autograd.grad(score.sum(), before)[0]
    _, actual = features_of(model, images, target=1)
    torch.testing.assert_close(actual, expected, atol=1e-8, rtol=1e-5)


def test_an_inner_layer_overwritten_in_place_is_recorded_as_it_was(tiny, pictures):
    model = tiny("cnn")  # layer 1 is a BatchNorm, layer 2 an in-place ReLU
    images = pictures(model)
    with torch.no_grad():
        expected = model.module[1](model.module[0]((images - 0.5) / 0.5))
    features, _ = features_of(model, images, layer="1")
    assert expected.min() < -0.1
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)


def test_two_layers_are_tapped_in_one_pass(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    needs = [request("feature_gradients", layer=layer) for layer in ("1", "5")]
    both = record(model, images, needs, 2).signals
    for need, layer in zip(needs, ("1", "5"), strict=True):
        torch.testing.assert_close(both[need], features_of(model, images, layer, 2)[1], atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("method", ["layer_cam", "grad_cam", "activation"])
def test_an_unknown_layer_suggests_names_before_anything_runs(tiny, method):
    with pytest.raises(UnknownNameError, match=r"has no layer 'blocks.2.norm3'; did you mean .*blocks.2.norm"):
        ac.make_explainer(tiny("vit"), method, layer="blocks.2.norm3")


@pytest.mark.parametrize("method", ["layer_cam", "grad_cam"])
@pytest.mark.parametrize(("name", "layer"), [("cnn", "8"), ("cnn", "6"), ("vit", "head")])
def test_a_layer_that_does_not_lie_on_the_image_is_a_capture_error(tiny, pictures, method, name, layer):
    model = tiny(name)
    explainer = ac.make_explainer(model, method, layer=layer)
    with pytest.raises(CaptureError, match=rf"layer '{layer}' returns shape"):
        explainer.explain(pictures(model))


def test_a_layer_that_never_runs_is_a_capture_error(build, pictures):
    module = build("overwriting_cnn")
    module.spare = nn.Conv2d(3, 4, 3)
    model = ac.wrap_model(module, size=(32, 32))
    with pytest.raises(CaptureError, match="'spare' did not run"):
        ac.make_explainer(model, "layer_cam", layer="spare").explain(pictures(model))


@pytest.mark.parametrize("method", ["layer_cam", "hires_cam", "grad_cam"])
def test_a_layer_that_the_score_does_not_depend_on_is_a_capture_error(build, pictures, method):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aside = build("cnn"), nn.Conv2d(3, 4, 3)

        def forward(self, images):
            self.aside(images)
            return self.net(images)

    model = ac.wrap_model(Aside(), size=(32, 32))
    with pytest.raises(CaptureError, match="gradient"):
        ac.make_explainer(model, method, layer="aside").explain(pictures(model))
