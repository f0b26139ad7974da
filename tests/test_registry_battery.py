"""One battery over the whole registry: every method on every tiny model."""

import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.errors import SpecError, UnknownNameError, UnsupportedMethodError
from attncompare.inspection.layout import find_layout
from attncompare.methods._base import methods

STEPS = 4
QUICK = {
    "rise": {"n_masks": 24, "internal_batch_size": 8},
    "smooth_grad": {"n_samples": STEPS},
    "integrated_gradients": {"n_steps": STEPS},
    "occlusion": {"window": 0.5, "stride": 0.5},
    "gradient_shap": {"n_samples": STEPS, "seed": 2},  # other draws meet a ReLU at 0, open or shut by rounding
    "lime": {"n_samples": 12, "n_segments": 8},
    "kernel_shap": {"n_samples": 12, "n_segments": 8},
    "score_cam": {"internal_batch_size": 64},
}
FEATURE_GRID = {
    "ablation_cam",
    "activation",
    "eigen_cam",
    "finer_cam",
    "grad_cam",
    "grad_cam_pp",
    "hires_cam",
    "layer_cam",
    "score_cam",
    "xgrad_cam",
}
TOKEN_GRID = {
    "attention_rollout",
    "attention_x_gradient",
    "class_attention",
    "gradient_rollout",
    "legrad",
    "transformer_lrp",
}
WINDOW_GRID = {"window_attention": -1, "hierarchical_rollout": 0}  # the block whose grid the map has
IMAGE_GRID = {
    "attn_lrp",
    "deep_lift",
    "gradient_shap",
    "guided_backprop",
    "guided_grad_cam",
    "kernel_shap",
    "lime",
    "rise",
    "smooth_grad",
    "random_map",
    "center_map",
    "edge_map",
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "occlusion",
}
COUNT = 3
RELU_NETS = {"cnn", "overwriting_cnn", "embedding_cnn", "se_cnn"}


@dataclass(frozen=True)
class Looks:
    """A method that must see a model run before it refuses it: the tiny models that it explains and those it refuses.

    refuses: None for all others. On models in neither set the values decide: a map of the right shape, or the refusal.
    """

    explains: set[str]
    refuses: set[str] | None
    reason: str


WHEN_SEEN = {
    "grad_cam_pp": Looks(RELU_NETS - {"overwriting_cnn"}, set(), "defined for layers behind a ReLU"),
    "xgrad_cam": Looks(RELU_NETS - {"overwriting_cnn"}, {"swin", "cait"}, "channels of this one cancel to zero"),
    "deep_lift": Looks(RELU_NETS - {"se_cnn"}, None, "do not cover products of activations and layer norm"),
}
# Class 3 has nothing in its favor in some of the pictures: the ReLU of the formula leaves an empty map.
TARGETS = {("ablation_cam", "hf_deit"): 1, ("ablation_cam", "hf_deit_teacher"): 1}
# A share of the score that one channel carries is the difference of two scores that agree to three digits or more.
ROUNDING = {"ablation_cam": 1e-4, "score_cam": 2e-5}  # of scores that nearly agree; score_cam: 1.06e-5 on an AMD EPYC


def key(model):
    """The name that the tiny models have in conftest."""
    return model.name.removeprefix("tiny/").removeprefix("demo/").removesuffix("@random")


def supplies(model, name):
    return set(methods.get(name).needs) <= model.supplies


def supports(model, name):
    """Whether a map is certain."""
    return supplies(model, name) and (name not in WHEN_SEEN or key(model) in WHEN_SEEN[name].explains)


def explain(model, name, images, target=3):
    target = TARGETS.get((name, key(model)), target) if isinstance(target, int) and target == 3 else target
    return ac.make_explainer(model, name, **QUICK.get(name, {})).explain(images, None if model.embedding else target)


KEPT = {}


def explained(model, name, pictures):
    """The maps of COUNT pictures, computed once for all the tests that look at them."""
    if (model.name, name) not in KEPT:
        KEPT[model.name, name] = explain(model, name, pictures(model, COUNT))
    return KEPT[model.name, name]


def features_size(model):
    """(h, w) or (C, h, w) of the feature layer, gate and pooled features, seen by plain hooks."""
    structure, seen = model.structure, {}
    paths = {"features": structure.feature_layer}
    if structure.classifier:
        paths["pooled"] = structure.classifier.feature_module
    if structure.se_layers:
        paths["gate"] = structure.se_layers[-1].layer
    handles = [
        model.module.get_submodule(path).register_forward_hook(
            lambda module, args, output, part=part: seen.update({part: output.shape})
        )
        for part, path in paths.items()
    ]
    with torch.no_grad():
        model.forward(torch.zeros(1, 3, *model.size))
    for handle in handles:
        handle.remove()
    return seen


def expected_shape(model, name):
    if name in IMAGE_GRID:
        return model.size
    if name in TOKEN_GRID:
        return model.attention_tokens.grid
    if name in WINDOW_GRID:
        return model.structure.windows[WINDOW_GRID[name]].geometry.grid
    shape = features_size(model)[
        {"cam": "pooled", "se_activation": "gate", "channel_attention": "gate"}.get(name, "features")
    ]
    if name == "channel_attention":
        return (shape[1],)
    layout = find_layout(shape, model.size, model.token_layouts)
    if layout not in ("nchw", "nhwc"):
        return layout.grid
    return tuple(shape[1:3]) if layout == "nhwc" else tuple(shape[2:])


def close(actual, expected, tolerance=1e-5):
    """Equal to that share of the range, image by image."""
    for one, other in zip(actual, expected, strict=True):
        span = float(other.max() - other.min())
        assert span > 0
        torch.testing.assert_close(one, other, atol=tolerance * span, rtol=0)


def assert_refused(model, name, pictures):
    """Refused by name with the reason: before anything runs where a signal lacks, else when the model was seen."""
    if supplies(model, name):
        return assert_refused_when_seen(model, name, pictures)
    needed = sorted(set(methods.get(name).needs) - model.supplies)
    ran = []
    handle = model.module.register_forward_pre_hook(lambda *args: ran.append(1))
    try:
        with pytest.raises(UnsupportedMethodError) as error:
            ac.explain_together(model, ["random_map", name], torch.zeros(1, 3, *model.size))
        with pytest.raises(UnsupportedMethodError):
            ac.make_explainer(model, name)
    finally:
        handle.remove()
    assert ran == []
    text = str(error.value)
    assert text.startswith(f"{name} needs {needed[0]}: ")
    assert model.missing[needed[0]] in text
    assert model.name in text
    return None


def assert_refused_when_seen(model, name, pictures):
    """Refused with the reason, or, on a model whose values decide, explained by a map of the right shape."""
    looks = WHEN_SEEN[name]
    try:
        shown = explain(model, name, pictures(model, COUNT))
    except UnsupportedMethodError as error:
        assert re.search(rf"^{name} .*{looks.reason}|^{name}: .*{looks.reason}", str(error)), error
        return
    assert looks.refuses is not None and key(model) not in looks.refuses
    assert tuple(shown.values.shape) == (COUNT, *expected_shape(model, name))
    assert torch.isfinite(shown.values).all()


def explain_or_see_refused(model, name, pictures):
    """The map of a few pictures, or None when the method is refused as it should be."""
    if supports(model, name):
        return explained(model, name, pictures)
    assert_refused(model, name, pictures)
    return None


@pytest.mark.parametrize("name", ac.list_methods())
def test_a_map_has_its_shape_and_is_finite_or_is_refused_with_the_reason(each_tiny, pictures, name):
    shown = explain_or_see_refused(each_tiny, name, pictures)
    if shown is None:
        return
    assert tuple(shown.values.shape) == (COUNT, *expected_shape(each_tiny, name))
    assert shown.values.dtype == torch.float32
    assert torch.isfinite(shown.values).all()
    assert shown.spatial == (methods.get(name).space == "image")
    assert (shown.model, shown.method) == (each_tiny.name, name)
    assert shown.target.shape == (COUNT,)
    assert not shown.values.requires_grad
    assert shown.values.flatten(1).std(dim=1).min() > 0  # no map of these models is flat


def test_all_methods_together_give_what_each_gives_alone(each_tiny, pictures):
    images = pictures(each_tiny, COUNT)
    names = [name for name in ac.list_methods() if supports(each_tiny, name)]
    target = None if each_tiny.embedding else 3
    names = [name for name in names if (name, key(each_tiny)) not in TARGETS]
    together = ac.explain_together(each_tiny, [(name, QUICK.get(name, {})) for name in names], images, target)
    assert list(together) == names
    for name in names:
        close(explained(each_tiny, name, pictures).values, together[name].values, ROUNDING.get(name, 1e-5))


@pytest.mark.parametrize("name", ac.list_methods())
def test_a_batch_gives_what_its_images_give_one_by_one(each_tiny, pictures, name):
    if not supports(each_tiny, name):
        return  # that it is refused is seen above
    batched = explained(each_tiny, name, pictures).values
    single = torch.cat([explain(each_tiny, name, image[None]).values for image in pictures(each_tiny, COUNT)])
    close(batched, single, ROUNDING.get(name, 1e-5))


@pytest.mark.parametrize("name", ac.list_methods())
def test_the_same_seed_gives_the_same_map(tiny, fresh, pictures, name):
    order = (
        ("vit", "cnn", "se_cnn", "swin") if name in QUICK else ("se_cnn", "vit", "cnn", "swin")
    )  # a small one where it is costly
    model = next(m for m in map(tiny, order) if supports(m, name))
    images = pictures(model, COUNT)
    once, again = explain(model, name, images).values, explain(model, name, images).values
    assert torch.equal(once, again)
    torch.manual_seed(123)
    rebuilt = ac.load_model(model.name) if model.name.startswith("demo") else fresh(model.name.removeprefix("tiny/"))
    close(explain(rebuilt, name, images).values, once)


def passes_of(model, name):
    """(forward, backward) passes per image, from what each method has to compute."""
    channels = features_size(model).get("features", (0, 0))
    layout = find_layout(channels, model.size, model.token_layouts) if supplies(model, "activation") else None
    channels = channels[1] if layout == "nchw" else channels[-1]
    shared_only = supplies(model, "cam") and model.structure.classifier.feature_module == model.structure.feature_layer
    return {
        "random_map": (0, 0),
        "center_map": (0, 0),
        "edge_map": (0, 0),
        "saliency": (1, 1),
        "input_x_gradient": (1, 1),
        "layer_cam": (1, 1),
        "hires_cam": (1, 1),
        "grad_cam": (1, 1),
        "grad_cam_pp": (1, 1),
        "xgrad_cam": (1, 1),
        "gradient_rollout": (1, 1),
        "attention_x_gradient": (1, 1),
        "integrated_gradients": (STEPS + 2, STEPS),  # the convergence delta needs the scores of both ends
        "occlusion": (3 * 3 + 1, 0),  # half a side, moved by a quarter: three places along each axis
        "rise": (QUICK["rise"]["n_masks"], 0),
        "lime": (QUICK["lime"]["n_samples"], 0),
        "kernel_shap": (QUICK["kernel_shap"]["n_samples"], 0),
        "smooth_grad": (STEPS, STEPS),
        "gradient_shap": (STEPS, STEPS),
        "score_cam": (1 + channels, 0),  # the features, then a mask for each of their channels
        "ablation_cam": (1 if shared_only else 2, 0),  # the head alone, run for each channel, is no pass
        "finer_cam": (2, 1),  # which classes are near comes first
        "guided_backprop": (1, 1),
        "guided_grad_cam": (2, 2),  # the plain gradients of Grad-CAM, and the guided ones
        "deep_lift": (2, 2),  # the image and its reference
        "attn_lrp": (1, 1),
        "legrad": (1, 1),  # each block's graph is walked once
        "transformer_lrp": (2, 2),  # gradients, then relevance
    }.get(name, (1, 0))


@pytest.mark.parametrize("name", ac.list_methods())
def test_the_passes_are_counted(each_tiny, pictures, name):
    if supports(each_tiny, name):
        shown = explained(each_tiny, name, pictures)
        assert (shown.passes_forward, shown.passes_backward) == passes_of(each_tiny, name)


RUNS_THE_HEAD = {"ablation_cam", "legrad"}


@pytest.mark.parametrize("name", ac.list_methods())
def test_the_passes_counted_are_those_that_ran(tiny, pictures, monkeypatch, name):
    """By the images that reach the first convolution, which parts of a pass that are run again do not."""
    model = next(m for m in map(tiny, ("vit", "cnn", "se_cnn", "swin")) if supports(m, name))
    images, target = pictures(model), torch.tensor([3, 1])
    explain(model, name, images, target)  # the first time, one more forward pass checks the logits
    plain, rows = nn.Conv2d._conv_forward, []

    def counting(self, given, weight, bias):
        if weight.shape[1] == 3:
            rows.append(len(given))
        return plain(self, given, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counting)
    shown = explain(model, name, images, target)
    # Methods that read nothing of the shared pass skip it, the target being given.
    assert sum(rows) / len(images) == shown.passes_forward


def count_passes(model):
    """Lists that grow with every forward pass of the model and every backward pass that starts at its output."""
    forward, backward = [], []

    def seen(module, args, output):
        forward.append(1)
        if output.requires_grad:
            output.register_hook(lambda gradient: backward.append(1))

    model.module.register_forward_hook(seen)
    return forward, backward


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_torchvision", "se_cnn"])
def test_the_shared_methods_cost_one_forward_and_one_backward_pass_in_all(fresh, pictures, name):
    model = fresh(name)
    images = pictures(model)
    shared = [method.name for method in methods if not method.own_passes and supports(model, method.name)]
    ac.explain_together(model, shared, images)  # the first time, one more forward pass checks the logits
    forward, backward = count_passes(model)
    assert len(ac.explain_together(model, shared, images)) > 5
    assert (len(forward), len(backward)) == (1, 1)


def test_grad_cam_joins_the_one_forward_and_the_one_backward_pass(fresh, pictures):
    model = fresh("vit")
    images, names = pictures(model), ["gradient_rollout", "grad_cam", "saliency"]
    forward, backward = count_passes(model)
    ac.explain_together(model, names, images)
    assert (len(forward), len(backward)) == (2, 1)  # the first time, one more forward pass checks the logits
    ac.explain_together(model, names, images)
    assert (len(forward), len(backward)) == (3, 2)


def test_methods_without_gradients_run_no_backward_pass(fresh, pictures):
    model = fresh("vit")
    forward, backward = count_passes(model)
    assert len(ac.explain_together(model, ["attention_rollout", "class_attention", "activation"], pictures(model))) == 3
    assert forward
    assert not backward


def test_controls_with_a_given_target_run_no_pass_at_all(fresh, pictures):
    model, ran = fresh("cnn"), []
    model.module.register_forward_hook(lambda *args: ran.append(1))
    ac.explain_together(model, ["random_map", "center_map", "edge_map"], pictures(model), torch.tensor([0, 1]))
    assert ran == []


@pytest.mark.parametrize("name", [method.name for method in methods if method.class_sensitive])
def test_a_class_sensitive_method_shows_another_map_for_another_class(tiny, pictures, name):
    model = tiny("cnn") if supports(tiny("cnn"), name) else tiny("vit")
    images = pictures(model)
    one, other = explain(model, name, images, 0).values, explain(model, name, images, 4).values
    assert (one - other).abs().max() > 0.01 * one.abs().max()


@pytest.mark.parametrize("name", [method.name for method in methods if not method.class_sensitive])
def test_a_class_blind_method_shows_the_same_map_for_every_class(tiny, pictures, name):
    model = next(m for m in map(tiny, ("cnn", "vit", "se_cnn", "swin")) if supports(m, name))
    images = pictures(model)
    assert torch.equal(explain(model, name, images, 0).values, explain(model, name, images, 4).values)


@pytest.mark.parametrize("name", ["guided_backprop", "guided_grad_cam"])
def test_guided_backpropagation_is_for_networks_of_relus(each_tiny, name):
    """Elsewhere it would be the plain gradient, or changed in a part of the network only."""
    assert supplies(each_tiny, name) == (key(each_tiny) in RELU_NETS)
    if key(each_tiny) not in RELU_NETS:
        with pytest.raises(
            UnsupportedMethodError, match=r"backward pass of ReLUs, and this model uses gelu.*use saliency"
        ):
            ac.make_explainer(each_tiny, name)


@pytest.mark.parametrize("name", ac.list_methods())
def test_a_method_says_what_it_is(name):
    method = methods.get(name)
    assert method.name == method.compute.__name__ == name
    assert len(method.summary) > 20
    assert method.reference
    assert all(option.meaning for option in method.options)
    assert set(method.resolve({})) == {option.name for option in method.options}


@pytest.mark.parametrize("name", ac.list_methods())
def test_every_default_of_every_option_is_a_value_it_accepts(name):
    method = methods.get(name)
    defaults = method.resolve({})
    assert method.resolve(defaults) == defaults


def test_an_unknown_method_or_option_is_refused_with_a_suggestion(tiny):
    with pytest.raises(UnknownNameError, match="unknown method 'gradcam'; did you mean grad_cam"):
        ac.make_explainer(tiny("cnn"), "gradcam")
    with pytest.raises(UnknownNameError, match=r"unknown option of attention_rollout 'fuse'.*head_fusion"):
        ac.make_explainer(tiny("vit"), "attention_rollout", fuse="max")
    with pytest.raises(SpecError, match="edge_map has no options; 'sigma' was given"):
        ac.make_explainer(tiny("cnn"), "edge_map", sigma=1.0)
    with pytest.raises(
        SpecError, match=r"attention_rollout.head_fusion must be one of \['mean', 'max', 'min'\], not 'sum'"
    ):
        ac.make_explainer(tiny("vit"), "attention_rollout", head_fusion="sum")
    with pytest.raises(UnknownNameError, match="3 channel-attention layers; gate 3"):
        ac.make_explainer(tiny("se_cnn"), "se_activation", gate=3).explain(torch.zeros(1, 3, 64, 64))


def test_a_method_asked_for_twice_is_refused(tiny, pictures):
    with pytest.raises(SpecError, match="twice"):
        ac.explain_together(tiny("cnn"), ["saliency", "saliency"], pictures(tiny("cnn")))


def test_the_options_that_made_a_map_are_kept_with_it(tiny, pictures):
    shown = ac.make_explainer(tiny("vit"), "attention_rollout", head_fusion="max").explain(pictures(tiny("vit")))
    assert dict(shown.options) == {"head_fusion": "max", "discard_ratio": 0.0}
