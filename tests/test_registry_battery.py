"""One battery over the whole registry: every method on every tiny model."""

import pytest
import torch

import attncompare as ac
from attncompare.capture.capture import capture
from attncompare.capture.features import find_layout
from attncompare.capture.recorders import Need
from attncompare.errors import SpecError, UnknownNameError, UnsupportedMethodError
from attncompare.methods._base import methods
from attncompare.signals import Signal

STEPS = 4
QUICK = {
    "rise": {"masks": 24, "batch": 8},
    "smooth_grad": {"samples": STEPS},
    "integrated_gradients": {"steps": STEPS},
    "occlusion": {"window": 0.5, "stride": 0.5},
}
FEATURE_GRID = {"eigen_cam", "grad_cam_pp", "xgrad_cam", "activation", "hires_cam", "layer_cam", "grad_cam"}
TOKEN_GRID = {"attention_x_gradient", "attention_rollout", "class_attention", "gradient_rollout"}
WINDOW_GRID = {"window_attention": -1, "hierarchical_rollout": 0}  # the block whose grid the map has
IMAGE_GRID = {
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
BEHIND_RELU = {"grad_cam_pp", "xgrad_cam"}  # which look at the values before they refuse
GRADIENT_SIGNALS = {Signal.FEATURE_GRADIENTS, Signal.ATTENTION_GRADIENTS, Signal.IMAGE_GRADIENTS}
COUNT = 3


def supports(model, name):
    if name in BEHIND_RELU and Signal.FEATURES in model.supplies and is_signed(model):
        return False
    return set(methods.get(name).needs) <= model.supplies


def is_signed(model):
    """Whether features have negative values, which methods for rectified layers may refuse when they see them."""
    images, need = torch.rand(2, 3, *model.size, generator=torch.Generator().manual_seed(0)), Need(Signal.FEATURES)
    return float(capture(model, images, [need]).signals[need].min()) < 0


def explain(model, name, images, target=3):
    return ac.make_explainer(model, name, **QUICK.get(name, {})).explain(images, None if model.embedding else target)


def features_size(model):
    """(h, w) or (C, h, w) of the feature layer, gate and pooled features, seen by plain hooks."""
    anatomy, seen = model.anatomy, {}
    paths = {"features": anatomy.feature_layer}
    if anatomy.classifier:
        paths["pooled"] = anatomy.classifier.features
    if anatomy.gates:
        paths["gate"] = anatomy.gates[-1].layer
    handles = [
        model.model.get_submodule(path).register_forward_hook(
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
        return model.anatomy.windows[WINDOW_GRID[name]].geometry.grid
    shape = features_size(model)[
        {"cam": "pooled", "se_activation": "gate", "channel_attention": "gate"}.get(name, "features")
    ]
    if name == "channel_attention":
        return (shape[1],)
    layout = find_layout(shape, model.size, model.sequences)
    if layout not in ("nchw", "nhwc"):
        return layout.grid
    return tuple(shape[1:3]) if layout == "nhwc" else tuple(shape[2:])


def close(actual, expected):
    """Equal to 1e-5 of the range, image by image."""
    for one, other in zip(actual, expected, strict=True):
        span = float(other.max() - other.min())
        assert span > 0
        torch.testing.assert_close(one, other, atol=1e-5 * span, rtol=0)


def assert_refused(model, name):
    """Refused by name, with the signal and the model's own reason, before anything runs."""
    if name in BEHIND_RELU:
        return  # tested with their formulas: whether they refuse depends on the values
    needed = sorted(set(methods.get(name).needs) - model.supplies)
    ran = []
    handle = model.model.register_forward_pre_hook(lambda *args: ran.append(1))
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
    assert model.anatomy.missing[needed[0]] in text
    assert model.name in text


def explain_or_see_refused(model, name, pictures):
    """The map of a few pictures, or None when the method is refused as it should be."""
    if supports(model, name):
        return explain(model, name, pictures(model, COUNT))
    assert_refused(model, name)
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
    together = ac.explain_together(
        each_tiny, [(name, QUICK.get(name, {})) for name in names], images, None if each_tiny.embedding else 3
    )
    assert list(together) == names
    for name in names:
        close(explain(each_tiny, name, images).values, together[name].values)


@pytest.mark.parametrize("name", ac.list_methods())
def test_a_batch_gives_what_its_images_give_one_by_one(each_tiny, pictures, name):
    if not supports(each_tiny, name):
        assert_refused(each_tiny, name)
        return
    images = pictures(each_tiny, COUNT)
    batched = explain(each_tiny, name, images).values
    single = torch.cat([explain(each_tiny, name, image[None]).values for image in images])
    close(batched, single)


@pytest.mark.parametrize("name", ac.list_methods())
def test_the_same_seed_gives_the_same_map(tiny, fresh, pictures, name):
    model = next(m for m in map(tiny, ("se_cnn", "vit", "cnn", "swin")) if supports(m, name))
    images = pictures(model, COUNT)
    once, again = explain(model, name, images).values, explain(model, name, images).values
    assert torch.equal(once, again)
    torch.manual_seed(123)
    rebuilt = ac.load_model(model.name) if model.name.startswith("demo") else fresh(model.name.removeprefix("tiny/"))
    close(explain(rebuilt, name, images).values, once)


@pytest.mark.parametrize("name", ac.list_methods())
def test_the_passes_are_counted(each_tiny, pictures, name):
    shown = explain_or_see_refused(each_tiny, name, pictures)
    if shown is None:
        return
    counted = (shown.passes_forward, shown.passes_backward)
    method = methods.get(name)
    if method.control:
        assert counted == (0, 0)
    elif name == "integrated_gradients":
        assert counted == (STEPS + 2, STEPS)  # the convergence delta needs the scores of both ends
    elif name == "occlusion":
        assert counted == (3 * 3 + 1, 0)  # half a side, moved by a quarter: three places along each axis
    elif name == "rise":
        assert counted == (QUICK["rise"]["masks"], 0)
    elif name == "smooth_grad":
        assert counted == (STEPS, STEPS)
    elif GRADIENT_SIGNALS & set(method.needs) or name == "grad_cam":
        assert counted == (1, 1)
    else:
        assert counted == (1, 0)


def count_passes(model):
    """Lists that grow with every forward pass of the model and every backward pass that starts at its output."""
    forward, backward = [], []

    def seen(module, args, output):
        forward.append(1)
        if output.requires_grad:
            output.register_hook(lambda gradient: backward.append(1))

    model.model.register_forward_hook(seen)
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


def test_methods_without_gradients_run_no_backward_pass(fresh, pictures):
    model = fresh("vit")
    forward, backward = count_passes(model)
    assert len(ac.explain_together(model, ["attention_rollout", "class_attention", "activation"], pictures(model))) == 3
    assert forward
    assert not backward


def test_controls_with_a_given_target_run_no_pass_at_all(fresh, pictures):
    model, ran = fresh("cnn"), []
    model.model.register_forward_hook(lambda *args: ran.append(1))
    ac.explain_together(model, ["random_map", "center_map", "edge_map"], pictures(model), torch.tensor([0, 1]))
    assert ran == []


@pytest.mark.parametrize("name", [method.name for method in methods if method.class_sensitive])
def test_a_class_sensitive_method_shows_another_map_for_another_class(tiny, pictures, name):
    model = tiny("cnn") if supports(tiny("cnn"), name) else tiny("vit")
    images = pictures(model)
    assert (explain(model, name, images, 0).values - explain(model, name, images, 4).values).abs().max() > 1e-4


@pytest.mark.parametrize("name", [method.name for method in methods if not method.class_sensitive])
def test_a_class_blind_method_shows_the_same_map_for_every_class(tiny, pictures, name):
    model = next(m for m in map(tiny, ("cnn", "vit", "se_cnn", "swin")) if supports(m, name))
    images = pictures(model)
    assert torch.equal(explain(model, name, images, 0).values, explain(model, name, images, 4).values)


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
    with pytest.raises(UnknownNameError, match=r"unknown option of attention_rollout 'fuse'.*fusion"):
        ac.make_explainer(tiny("vit"), "attention_rollout", fuse="max")
    with pytest.raises(SpecError, match="edge_map has no options; 'sigma' was given"):
        ac.make_explainer(tiny("cnn"), "edge_map", sigma=1.0)
    with pytest.raises(SpecError, match=r"attention_rollout.fusion must be one of \['mean', 'max', 'min'\], not 'sum'"):
        ac.make_explainer(tiny("vit"), "attention_rollout", fusion="sum")
    with pytest.raises(UnknownNameError, match="3 channel-attention layers; gate 3"):
        ac.make_explainer(tiny("se_cnn"), "se_activation", gate=3).explain(torch.zeros(1, 3, 64, 64))


def test_a_method_asked_for_twice_is_refused(tiny, pictures):
    with pytest.raises(SpecError, match="twice"):
        ac.explain_together(tiny("cnn"), ["saliency", "saliency"], pictures(tiny("cnn")))


def test_the_options_that_made_a_map_are_kept_with_it(tiny, pictures):
    shown = ac.make_explainer(tiny("vit"), "attention_rollout", fusion="max").explain(pictures(tiny("vit")))
    assert dict(shown.options) == {"fusion": "max", "discard": 0.0}
