"""Guided backpropagation, guided Grad-CAM, DeepLIFT and GradientSHAP, derived layer by layer in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift, GuidedBackprop
from references import gradients, peers
from references.compare import difference
from references.plain import Plain
from torch import nn

import attncompare as ac
from attncompare.errors import UnsupportedMethodError

RELATIVE = 1e-5
TARGET = torch.tensor([1, 2])
SIDE = 12


def seeded(*layers):
    """A net of newly drawn layers; the same seed for each."""
    torch.manual_seed(4)
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(*layers).eval()


def wrapped(module):
    return ac.wrap_model(module, size=(SIDE, SIDE), name="small")


def images_of(count=2):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def head(channels):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)


def pooling_net(pool, apart=False):
    """Convolution, ReLU and pooling; `apart`: a convolution between the two, so that Captum's hooks do not meet."""
    between = [nn.Conv2d(6, 6, 1)] if apart else []
    body = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *between, pool, nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
    return seeded(*body, *head(8))


class Functional(nn.Module):
    """The same function as `twin`, of F.relu; and one ReLU module used twice where `reused`."""

    def __init__(self, reused=False):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.linear = nn.Linear(8, 4)
        self.act = nn.ReLU() if reused else None

    def forward(self, x):
        act = self.act or F.relu
        x = act(self.second(act(self.first(x))))
        return self.linear(x.mean(dim=(2, 3)))

    def twin(self):
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(self.first, nn.ReLU(), self.second, nn.ReLU(), *pooled, self.linear).eval()


# Guided backpropagation


@pytest.mark.parametrize("kind", ["modules", "functions", "one module twice"])
def test_guided_backprop_meets_every_relu(kind):
    net = Functional(reused=kind == "one module twice").eval()
    expected = gradients.guided_backprop(wrapped(net.twin()), images_of(), TARGET)
    model = wrapped(net.twin() if kind == "modules" else net)
    shown = ac.make_explainer(model, "guided_backprop").explain(images_of(), TARGET)
    assert difference(shown.values, expected) <= RELATIVE
    assert difference(gradients.saliency(model, images_of(), TARGET), expected) > 0.1  # what no rule would give


def test_guided_backprop_by_hand():
    """W2 relu(W1 x): of W2's gradient only the positive part passes, where the hidden unit is on."""
    first = torch.tensor([[1.0, -1.0, 0.5], [2.0, 1.0, 1.0], [-1.0, 0.5, 1.0]])
    second = torch.tensor([[1.0, -3.0, 2.0]])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("first", first)
            self.register_buffer("second", second)

        def forward(self, x):
            return torch.relu(x.mean(dim=(2, 3)) @ self.first.T) @ self.second.T

    model = ac.wrap_model(Net(), size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
    color = torch.tensor([0.9, 0.1, 0.2])
    images = color.reshape(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
    # hidden units: 0.9, 2.1, -0.65: on, on, off. Gradients behind: 1, -3, 2: the second is negative. Left: first unit, 1.
    shown = ac.make_explainer(model, "guided_backprop").explain(images, 0)
    torch.testing.assert_close(shown.values, torch.full((1, 4, 4), 1 / 16))  # largest of |1, -1, 0.5| over 16 places


def test_captum_leaves_a_relu_that_is_a_function_as_it_is():
    net = Functional().eval()
    bare = peers.Normalized(wrapped(net))
    found = GuidedBackprop(bare).attribute(images_of().requires_grad_(True), target=TARGET).abs().amax(dim=1)
    plain = gradients.saliency(wrapped(net), images_of(), TARGET)
    assert difference(found.detach(), plain) <= RELATIVE  # the plain gradient
    guided = ac.make_explainer(wrapped(net), "guided_backprop").explain(images_of(), TARGET)
    assert difference(found.detach(), guided.values) > 0.1


@pytest.mark.parametrize("name", ["guided_backprop", "guided_grad_cam"])
def test_guided_methods_refuse_networks_of_other_activations(tiny, pictures, name):
    for kind in ("vit", "hf_vit", "swin"):
        with pytest.raises(UnsupportedMethodError, match=rf"{name}.*gelu.*use saliency"):
            ac.make_explainer(tiny(kind), name).explain(pictures(tiny(kind)), TARGET)
    tanh = wrapped(seeded(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.ReLU(), *head(8)))
    with pytest.raises(UnsupportedMethodError, match="tanh"):
        ac.make_explainer(tanh, name).explain(images_of(), TARGET)
    linear = wrapped(seeded(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), *head(8)))
    with pytest.raises(UnsupportedMethodError, match="has none"):
        ac.make_explainer(linear, name).explain(images_of(), TARGET)


@pytest.mark.parametrize(
    "make", [lambda tiny: tiny("cnn"), lambda tiny: ac.load_model("demo/cnn")], ids=["tiny", "demo"]
)
def test_guided_grad_cam_is_guided_gradient_times_enlarged_grad_cam(tiny, pictures, make):
    model = make(tiny)
    images = pictures(model)
    target = model.forward(images).argmax(dim=1)
    shown = ac.make_explainer(model, "guided_grad_cam").explain(images, target)
    assert difference(shown.values, gradients.guided_grad_cam(model, images, target)) <= RELATIVE


# DeepLIFT


def test_deep_lift_by_hand():
    """Two hidden units: one goes from off to on, one stays on. Multiplier = change of output over change of input."""

    class Net(nn.Module):
        def forward(self, x):
            gray = x.mean(dim=(1, 2, 3))
            return (3 * F.relu(2 * gray - 1) + F.relu(gray + 1))[:, None]

    model = ac.wrap_model(Net(), size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
    images = torch.full((1, 3, 4, 4), 0.75)
    shown = ac.make_explainer(model, "deep_lift").explain(images, 0)
    # first unit: input from -1 to 0.5, output from 0 to 0.5, so 1/3; 3 * 1/3 * 2 + 1 = 3; times 0.75 over 16 places
    torch.testing.assert_close(shown.values, torch.full((1, 4, 4), 3 * 0.75 / 16))
    assert float(shown.detail["convergence_delta"].abs().max()) < 1e-6


POOLS = {
    "windows side by side": lambda: nn.MaxPool2d(2),
    "overlapping windows": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "every place in nine windows": lambda: nn.MaxPool2d(3, stride=1, padding=1),
    "no pooling": nn.Identity,
}


@pytest.mark.parametrize("baseline", [0.0, 0.4])
@pytest.mark.parametrize("pool", POOLS)
def test_deep_lift_is_the_rescale_rule_window_by_window(pool, baseline):
    model, images = wrapped(pooling_net(POOLS[pool]())), images_of()
    shown = ac.make_explainer(model, "deep_lift", baseline=baseline).explain(images, TARGET)
    assert difference(shown.values, gradients.deep_lift(model, images, TARGET, baseline)) <= RELATIVE
    plain = Plain(model)
    change = plain.score(images, TARGET) - plain.score(torch.full_like(images, baseline), TARGET)
    torch.testing.assert_close(shown.values.double().sum(dim=(1, 2)), change, atol=1e-6, rtol=1e-5)
    assert (change.abs() > 1e-3).all()


def captum_misses(module, images):
    """By how much Captum's attributions miss the change of the score, as a share of that."""
    start = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    bare = peers.Normalized(wrapped(module))
    target = TARGET[: len(images)]
    found = DeepLift(bare).attribute(images, start.expand_as(images), target=target)
    change = (bare(images) - bare(start)).gather(1, target[:, None])[:, 0]
    return float(((found.sum(dim=(1, 2, 3)) - change).abs() / change.abs()).max())


def test_captum_loses_what_overlapping_windows_share_and_pooling_right_behind_a_relu():
    images = images_of()
    assert captum_misses(pooling_net(nn.Identity()), images) < 1e-4
    assert captum_misses(pooling_net(nn.MaxPool2d(2), apart=True), images) < 1e-4
    assert captum_misses(pooling_net(nn.MaxPool2d(3, stride=2, padding=1), apart=True), images) > 1e-2
    assert (
        captum_misses(pooling_net(nn.MaxPool2d(2)), images) > 1e-2
    )  # two hooks on one tensor: the first hides the second


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.Identity()], ids=["pooling", "none"])
def test_deep_lift_equals_captums_where_its_rules_hold(pool):
    """ReLU modules used once, windows side by side, and nothing hooked on both sides of one tensor."""
    model, images = wrapped(pooling_net(pool, apart=True)), images_of()
    shown = ac.make_explainer(model, "deep_lift").explain(images, TARGET)
    assert difference(shown.values, peers.captum_deep_lift(model, images, TARGET)) <= RELATIVE


@pytest.mark.parametrize("reused", [False, True], ids=["functions", "one module twice"])
def test_deep_lift_meets_relus_that_captum_cannot(reused):
    net = Functional(reused).eval()
    model = wrapped(net)
    shown = ac.make_explainer(model, "deep_lift").explain(images_of(), TARGET)
    assert difference(shown.values, gradients.deep_lift(wrapped(net.twin()), images_of(), TARGET)) <= RELATIVE
    if reused:
        with pytest.raises(RuntimeError, match="used more than once"):
            peers.captum_deep_lift(model, images_of(), TARGET)
    else:
        assert captum_misses(net, images_of()) > 1e-2


@pytest.mark.parametrize("name", ["vit", "hf_vit", "vit_mean", "swin", "se_cnn"])
def test_deep_lift_refuses_networks_whose_products_the_rules_do_not_cover(tiny, pictures, name):
    with pytest.raises(UnsupportedMethodError, match="do not cover products of activations"):
        ac.make_explainer(tiny(name), "deep_lift").explain(pictures(tiny(name)), 1)


def test_an_image_that_is_its_reference_gets_nothing():
    model = wrapped(pooling_net(nn.MaxPool2d(2)))
    shown = ac.make_explainer(model, "deep_lift", baseline=0.25).explain(torch.full((1, 3, SIDE, SIDE), 0.25), 1)
    assert (shown.values == 0).all()


# GradientSHAP


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_mean"])
@pytest.mark.parametrize("options", [{}, {"n_samples": 9, "sigma": 0.2, "seed": 7}], ids=["default", "noise"])
def test_gradient_shap_is_a_loop_over_the_same_draws(tiny, pictures, name, options):
    model = tiny(name)
    images = pictures(model)
    shown = ac.make_explainer(model, "gradient_shap", **options).explain(images, TARGET)
    assert difference(shown.values, gradients.gradient_shap(model, images, TARGET, **options)) <= RELATIVE


def test_gradient_shap_of_a_linear_model_is_its_shapley_value():
    """Baselines are grays: w (x - mean gray) with the mean of the grays that were drawn, 1/2 in the limit."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * SIDE * SIDE, 4)
    model = ac.wrap_model(nn.Sequential(nn.Flatten(), linear), size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
    images, samples = images_of(), 400
    shown = ac.make_explainer(model, "gradient_shap", n_samples=samples, seed=3).explain(images, TARGET)
    grays = [float(torch.rand(2, generator=torch.Generator().manual_seed(3 + k))[0]) for k in range(samples)]
    weights = linear.weight.detach()[TARGET].reshape(2, 3, SIDE, SIDE).double()
    expected = (weights * (images.double() - sum(grays) / samples)).sum(dim=1)
    assert difference(shown.values, expected) <= RELATIVE
    assert abs(sum(grays) / samples - 0.5) < 0.05


def test_the_rules_leave_no_trace(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    before = ac.make_explainer(model, "saliency").explain(images, TARGET).values
    weights = copy.deepcopy(model.module.state_dict())
    for name in ("guided_backprop", "deep_lift", "attn_lrp"):
        ac.make_explainer(model, name).explain(images, TARGET)
    assert torch.equal(ac.make_explainer(model, "saliency").explain(images, TARGET).values, before)
    assert all(torch.equal(value, weights[key]) for key, value in model.module.state_dict().items())
