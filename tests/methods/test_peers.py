"""Parity with independent implementations: raw maps compared before anyone's clipping or rescaling."""

import numpy as np
import pytest
import torch
from torch import nn

from attncompare.explainer import explain_together
from attncompare.loading import load_model

pytestmark = pytest.mark.peers
RELATIVE = 1e-5


class Normalised(nn.Module):
    """The model on images in [0, 1], as our adapter feeds it."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter, self.inner = adapter, adapter.model

    def forward(self, images):
        return self.adapter.forward(images)


def close(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    span = np.ptp(expected)
    assert span > 0
    np.testing.assert_allclose(actual, expected, atol=RELATIVE * span, rtol=0)


@pytest.fixture(scope="module", params=["torchvision/resnet18@random", "demo/cnn", "demo/vit"])
def case(request):
    adapter = load_model(request.param)
    images = torch.rand(2, 3, *adapter.size, generator=torch.Generator().manual_seed(0))
    return adapter, images, torch.tensor([3, 5])


def peer_setup(adapter):
    layer = adapter.model.get_submodule(adapter.anatomy.feature_layer)
    reshape = None if adapter.tokens is None else adapter.tokens.to_grid
    return layer, reshape


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam"])
def test_maps_equal_those_of_pytorch_grad_cam(case, name):
    library = pytest.importorskip("pytorch_grad_cam")
    adapter, images, target = case
    ours = explain_together(adapter, [name], images, target)[name].values
    layer, reshape = peer_setup(adapter)
    peer = {"grad_cam": library.GradCAM, "hires_cam": library.HiResCAM, "layer_cam": library.LayerCAM}[name]
    targets = [library.utils.model_targets.ClassifierOutputTarget(int(t)) for t in target]
    with peer(Normalised(adapter), [layer], reshape_transform=reshape) as explainer:
        explainer(images.clone().requires_grad_(True), targets)
        acts, grads = explainer.activations_and_grads.activations[0], explainer.activations_and_grads.gradients[0]
        raw = explainer.get_cam_image(images, layer, targets, acts.numpy(), grads.numpy(), False)
    close(ours.relu() if name == "grad_cam" else ours, np.maximum(raw, 0) if name != "hires_cam" else raw)


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_maps_equal_those_of_torchcam_up_to_its_own_scale(case, name):
    library = pytest.importorskip("torchcam.methods")
    adapter, images, target = case
    if adapter.tokens is not None:
        pytest.skip("torchcam reads tokens as they are; it has no reshape function")
    ours = explain_together(adapter, [name], images, target)[name].values
    peer = {"grad_cam": library.GradCAM, "layer_cam": library.LayerCAM}[name]
    for parameter in adapter.model.parameters():
        parameter.requires_grad_(True)
    module = Normalised(adapter)
    with peer(module, target_layer=f"inner.{adapter.anatomy.feature_layer}") as explainer:
        scores = module(images.clone().requires_grad_(True))
        theirs = explainer(target.tolist(), scores, normalized=False)[0]
    close(ours, theirs.relu().detach())


@pytest.mark.parametrize("name", ["grad_cam_pp", "xgrad_cam", "eigen_cam"])
def test_weights_and_projections_equal_those_of_pytorch_grad_cam(case, name):
    """Its functions on our features and gradients; the gradients enlarged, so that what it adds to a divisor is small."""
    library = pytest.importorskip("pytorch_grad_cam")
    from attncompare.capture.capture import capture
    from attncompare.capture.recorders import Need
    from attncompare.methods._base import methods
    from attncompare.signals import Signal

    adapter, images, target = case
    needs = [Need(Signal.FEATURES), Need(Signal.FEATURE_GRADIENTS)]
    found = capture(adapter, images, needs, target).signals
    features, gradients = (
        found[needs[0]].relu().double(),
        1e6 * found[needs[1]].double(),
    )  # both are defined behind a ReLU
    ours = methods.get(name)
    if name == "eigen_cam":
        theirs = library.utils.svd_on_activations.get_2d_projection(features.numpy())
        actual = ours.compute(features, centred=True)
        theirs = theirs * np.sign((theirs * actual.numpy()).sum((1, 2), keepdims=True))  # it leaves the sign open
        close(actual, theirs)
        return
    kind = {"grad_cam_pp": library.GradCAMPlusPlus, "xgrad_cam": library.XGradCAM}[name]
    weights = kind.get_cam_weights(None, None, None, None, features.numpy(), gradients.numpy())
    theirs = (weights[:, :, None, None] * features.numpy()).sum(1)
    close(ours.compute(features, gradients), np.maximum(theirs, 0) if name == "grad_cam_pp" else theirs)


def test_input_x_gradient_equals_captums(case):
    from captum.attr import InputXGradient

    adapter, images, target = case
    ours = explain_together(adapter, ["input_x_gradient"], images, target)["input_x_gradient"].values
    theirs = InputXGradient(Normalised(adapter)).attribute(images.clone().requires_grad_(True), target=target)
    close(ours, theirs.sum(1).detach())
