"""Score-CAM, Ablation-CAM, Finer-CAM, LIME and KernelSHAP, derived with loops in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from references import cams, perturbation
from references.compare import difference
from references.plain import Plain, enlarged
from references.supply import supply
from torch import nn

import attncompare as ac
from attncompare.capture.counting_forward import CountingForward
from attncompare.capture.target import TargetScore
from attncompare.maps import normalize_map, resize_map
from attncompare.methods.ablation_cam import ablation_cam
from attncompare.methods.kernel_shap import kernel_shap
from attncompare.methods.lime import lime
from attncompare.signals._base import request
from attncompare.state import preserve_state

RELATIVE = 1e-5
MODELS = ["cnn", "overwriting_cnn", "swin", "vit", "vit_mean", "vit_oblong", "hf_vit", "vit_registers"]


def clear_targets(model, images):
    """The class of each image whose logit is largest in size: what is divided by it is far from rounding."""
    return model.forward(images).abs().argmax(dim=1).detach()


def with_a_map(found, expected):
    """Images whose expected map is more than zeros, behind the ReLU: at least one, or nothing would be tested."""
    shown = [index for index, one in enumerate(expected) if float(one.max()) > 0]
    assert shown
    for index in set(range(len(expected))) - set(shown):
        assert (found[index] == 0).all()
    return found[shown], expected[shown]


@pytest.mark.parametrize("corners", [False, True])
def test_masks_are_enlarged_and_scaled_pixel_by_pixel(corners):
    channel = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = nn.functional.interpolate(channel[None, None], (7, 16), mode="bilinear", align_corners=corners)[0, 0]
    torch.testing.assert_close(enlarged(channel, 7, 16, corners), found, atol=1e-12, rtol=0)
    if not corners:
        torch.testing.assert_close(resize_map(channel[None], (7, 16))[0].double(), found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_score_cam_is_a_loop_over_channels_as_masks(tiny, pictures, name, batch):
    model = tiny(name)
    images = pictures(model, count=3)
    target = clear_targets(model, images)
    shown = ac.make_explainer(model, "score_cam", internal_batch_size=batch).explain(images, target)
    assert difference(*with_a_map(shown.values, cams.score_cam(model, images, target))) <= RELATIVE


def test_score_cam_hides_with_black_and_scales_each_mask_of_its_own():
    """Two channels, one of which is constant: it hides everything, and its map counts by what black scores."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 2, 1)
            with torch.no_grad():
                self.features.weight.zero_()
                self.features.weight[0, 0] = 5.0
                self.features.bias.copy_(torch.tensor([-1.0, 2.0]))

        def forward(self, x):
            return torch.stack([x[:, 1].mean((1, 2)), self.features(x).mean((1, 2, 3))], dim=1)

    model = ac.wrap_model(Net().eval(), size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3, feature_layer="features")
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    shown = ac.make_explainer(model, "score_cam").explain(images, 0).values[0]
    red = images[0, 0]
    mask = (red - red.min()) / (red.max() - red.min())
    weights = torch.stack([(images[0, 1] * mask).mean(), torch.tensor(0.0)]).softmax(0)
    torch.testing.assert_close(shown, (weights[0] * (5 * red - 1) + weights[1] * 2).clamp(min=0))


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_mean"])
def test_ablation_cam_is_a_loop_that_silences_one_channel_after_the_other(tiny, pictures, name):
    model = tiny(name)
    images, target = pictures(model), torch.tensor([3, 1])
    shown = ac.make_explainer(model, "ablation_cam").explain(images, target)
    assert difference(*with_a_map(shown.values, cams.ablation_cam(model, images, target))) <= RELATIVE


@pytest.mark.parametrize("name", MODELS)
def test_ablated_scores_are_those_of_the_loop_to_rounding(tiny, pictures, name):
    """In float64: weights are differences of scores, from which float32 takes up to 1e-5 of a rectified map's range."""
    model = tiny(name)
    source = replace(model.source, module=copy.deepcopy(model.module).double())
    double = replace(model, source=source, checked_recordings=set())
    images, target = pictures(model).double(), torch.tensor([3, 1])
    found = supply(double, request("ablated_scores"), images, target)[0]
    plain = Plain(model)
    for index in range(2):
        for channel in range(found.shape[1]):
            logits = cams.behind(model, plain, images[index], cams.without_channel(model, channel))
            assert float(found[index, channel]) == pytest.approx(float(logits[int(target[index])]), abs=1e-7)
    features, scores = cams.features_and_gradients(model, images, target)[0], plain(images).detach()
    shown = ablation_cam(features, found, scores, target)
    assert difference(*with_a_map(shown, cams.ablation_cam(model, images, target))) <= 1e-6


@pytest.mark.parametrize("name", ["cnn", "swin"])
def test_the_short_way_of_a_linear_head_gives_the_scores_of_the_long_one(tiny, pictures, name):
    """A function as target takes the long way: one pass of the head for each channel."""
    model = tiny(name)
    images = pictures(model)
    short = ac.make_explainer(model, "ablation_cam").explain(images, 3)
    long = ac.make_explainer(model, "ablation_cam").explain(images, lambda outputs: outputs[:, 3])
    assert difference(*with_a_map(long.values, short.values)) <= RELATIVE


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_a_negative_logit_does_not_turn_the_map_over(tiny, pictures, name):
    """Divided by the logit with its sign, as equation 4 says for positive scores, evidence for and against would swap."""
    model = tiny(name)
    images = pictures(model, count=3)
    logits = model.forward(images).detach()
    target = torch.full((3,), {"cnn": 0, "vit": int(logits[0].argmin())}[name])
    assert (logits.gather(1, target[:, None])[0] < -0.05).all()
    images, target = images[:1], target[:1]
    plain, index = Plain(model), int(target[0])
    features, _ = cams.features_and_gradients(model, images, target)
    kept = float(plain.score(images, target)[0])
    without = [
        float(cams.behind(model, plain, images[0], cams.without_channel(model, channel))[index])
        for channel in range(features.shape[1])
    ]
    weights = torch.tensor([(kept - one) / kept for one in without], dtype=torch.float64)
    literal = torch.einsum("c,bchw->bhw", weights, features)
    shown = ac.make_explainer(model, "ablation_cam").explain(images, target)
    assert difference(*with_a_map(shown.values, (-literal).clamp(min=0))) <= RELATIVE
    assert float((shown.values - literal.clamp(min=0)).abs().max()) > 0.1 * float(literal.abs().max())


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "rivals": 2}, {"rivals": 100}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_finer_cam_is_grad_cam_of_the_difference_to_similar_classes(tiny, pictures, name, options):
    model = tiny(name)
    images = pictures(model, count=3)
    target = model.forward(images).argmax(dim=1)
    shown = ac.make_explainer(model, "finer_cam", **options).explain(images, target)
    assert difference(*with_a_map(shown.values, cams.finer_cam(model, images, target, **options))) <= RELATIVE


def test_finer_cam_without_its_rivals_is_grad_cam(tiny, pictures):
    """With alpha 0 the score is the target's logit: the weights of the rivals sum to 1 and drop out."""
    for name in ("cnn", "vit"):
        model = tiny(name)
        images = pictures(model)
        target = model.forward(images).argmax(dim=1)
        finer = ac.make_explainer(model, "finer_cam", alpha=0).explain(images, target)
        assert difference(finer.values, ac.make_explainer(model, "grad_cam").explain(images, target).values) <= RELATIVE


# LIME and KernelSHAP, on superpixels that are given


def blocks(height, width, rows, columns):
    """(H,W) labels of rows x columns rectangles."""
    row = torch.arange(height) * rows // height
    column = torch.arange(width) * columns // width
    return row[:, None] * columns + column[None, :]


def scored(model, images, target):
    return CountingForward(model, TargetScore(target)).target_score


def drawn(count, samples, seed):
    """The sets that LIME draws: 0 or 1 for each superpixel, one set after the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([torch.randint(0, 2, (1, count)) for _ in range(samples)]).numpy()


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_mean"])
@pytest.mark.parametrize(
    "options",
    [{}, {"kernel_width": 0.6, "baseline": 0.0, "internal_batch_size": 7, "seed": 5}],
    ids=["default", "other"],
)
def test_lime_is_the_ridge_regression_of_scikit_learn_on_the_same_samples(tiny, pictures, name, options):
    model = tiny(name)
    images, target = pictures(model), torch.tensor([3, 1])
    labels = torch.stack([blocks(32, 32, 3, 4), blocks(32, 32, 2, 3)])  # of different numbers
    with preserve_state(model.module):
        shown = lime(images, labels, scored(model, images, target), n_samples=60, **options)
    expected = torch.zeros(2, 32, 32, dtype=torch.float64)
    given = {key: options[key] for key in ("kernel_width", "baseline") if key in options}
    for index in range(2):
        sets = drawn(int(labels[index].max()) + 1, 60, options.get("seed", 0))
        found = perturbation.lime(model, images[index], labels[index], int(target[index]), sets, **given)
        expected[index] = torch.from_numpy(found)[labels[index]]
    assert difference(shown, expected) <= RELATIVE


class Additive(nn.Module):
    """A score whose probability is additive in the superpixels: softmax of log p and log (1 - p)."""

    def __init__(self, labels, parts):
        super().__init__()
        self.register_buffer("labels", labels)
        self.register_buffer("parts", parts)

    def forward(self, x):
        shown = torch.stack([x[:, 0, self.labels == k].mean(1) for k in range(len(self.parts))], dim=1)
        p = (0.4 + (shown * self.parts).sum(dim=1)).double()
        return torch.stack([p.log(), (1 - p).log()], dim=1)


def additive():
    labels, parts = blocks(8, 12, 2, 3), torch.tensor([0.1, -0.05, 0.2, 0.0, 0.03, -0.11])
    model = ac.wrap_model(Additive(labels, parts), size=(8, 12), mean=(0.0,) * 3, std=(1.0,) * 3)
    return model, labels, parts


def test_kernel_shap_of_an_additive_score_is_exact():
    """Each superpixel is worth its part of the score times what it has more than the gray that replaces it."""
    model, labels, parts = additive()
    gray = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
    images = gray[labels].expand(1, 3, 8, 12).contiguous()
    shown = kernel_shap(images, labels[None], scored(model, images, torch.tensor([0])), n_samples=100)
    expected = (parts * (gray - 0.5)).double()
    exact = perturbation.shapley(model, images[0], labels, 0)
    torch.testing.assert_close(torch.tensor(exact, dtype=torch.float64), expected, atol=1e-6, rtol=0)
    assert difference(shown, expected[labels][None]) <= RELATIVE


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_mean"])
def test_kernel_shap_comes_close_to_the_exact_shapley_values(tiny, pictures, name):
    """All 64 coalitions of six superpixels were seen: what remains is how often each was drawn."""
    model = tiny(name)
    images, labels, target = pictures(model, count=1), blocks(32, 32, 2, 3), torch.tensor([3])
    exact = np.array(perturbation.shapley(model, images[0], labels, 3))
    errors = []
    for samples in (100, 6000):
        shown = kernel_shap(
            images, labels[None], scored(model, images, target), n_samples=samples, internal_batch_size=500
        )[0]
        found = np.array([float(shown[labels == k][0]) for k in range(6)])
        whole = perturbation.coalition_values(model, images[0], labels, 3, [(1,) * 6, (0,) * 6])
        assert found.sum() == pytest.approx(whole[0] - whole[1], rel=samples / 1e6)  # of 1e6, the weight of an end
        errors.append(np.abs(found - exact).max() / np.ptp(exact))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_kernel_shap_is_the_weighted_regression_over_its_coalitions(tiny, pictures):
    """The coalitions that pass through the model, the two ends a million fold, and the normal equations."""
    model = tiny("cnn")
    images, labels = pictures(model, count=1), blocks(32, 32, 2, 3)
    seen, score = [], scored(model, images, torch.tensor([3]))

    def watched(copies, which):
        seen.extend(copies)
        return score(copies, which)

    shown = kernel_shap(images, labels[None], watched, n_samples=80, seed=3)
    sets = np.array([[bool((copy[:, labels == k] != 0.5).any()) for k in range(6)] for copy in seen[-80:]], dtype=float)
    assert sets[0].all()
    assert not sets[1].any()
    values = perturbation.coalition_values(model, images[0], labels, 3, sets.astype(int).tolist())
    weights = np.where((sets.sum(axis=1) == 0) | (sets.sum(axis=1) == 6), 1e6, 1.0)
    expected = torch.from_numpy(perturbation.weighted_least_squares(sets, values, weights))
    assert difference(shown, expected[labels][None]) <= 1e-4  # weights of 1e6 leave float32 scores that much


@pytest.mark.parametrize("name", ["lime", "kernel_shap"])
def test_an_image_of_one_superpixel_gets_an_answer(tiny, name):
    """A flat image is one segment: LIME gives it a coefficient, KernelSHAP the whole difference."""
    model = tiny("cnn")
    images = torch.full((1, 3, 32, 32), 0.9)
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    method = {"lime": lime, "kernel_shap": kernel_shap}[name]
    shown = method(images, labels, scored(model, images, torch.tensor([3])), n_samples=20)
    whole = perturbation.coalition_values(model, images[0], labels[0], 3, [(1,), (0,)])
    assert shown.shape == (1, 32, 32)
    assert (shown == shown[0, 0, 0]).all()
    if name == "kernel_shap":
        assert float(shown[0, 0, 0]) == pytest.approx(whole[0] - whole[1], rel=1e-3)


@pytest.mark.parametrize("name", ["lime", "kernel_shap"])
def test_a_map_is_constant_inside_each_of_the_models_superpixels(tiny, pictures, name):
    model = tiny("vit")
    images = nn.functional.interpolate(pictures(model)[:, :, ::8, ::8], 32, mode="nearest")
    shown = ac.make_explainer(model, name, n_samples=20, n_segments=12).explain(images, 1).values
    for one in shown:
        assert 4 <= len(one.unique()) <= 20
    alone = ac.make_explainer(model, name, n_samples=20, n_segments=12).explain(images[1:], 1).values
    torch.testing.assert_close(alone[0], shown[1])


def test_a_constant_channel_as_mask_hides_everything():
    assert (normalize_map(torch.full((1, 3, 3), 2.5)) == 0).all()
