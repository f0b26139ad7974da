"""Every option of every method: refused outside what it may be, kept with the map, and of effect."""

import math

import pytest
import torch

import attncompare as ac
from attncompare.errors import SpecError, UnknownNameError
from attncompare.methods._base import methods

EVERY = [(method, option) for method in methods for option in method.options]
NUMBERS = [(method, option) for method, option in EVERY if option.kind in (int, float) and option.choices is None]
COUNTED_BY_THE_MODEL = {"block", "head", "gate"}  # which have their limits from the model
FAST = {
    "gradient_shap": {"n_samples": 3},
    "integrated_gradients": {"n_steps": 4},
    "kernel_shap": {"n_samples": 16, "n_segments": 6},
    "lime": {"n_samples": 16, "n_segments": 6},
    "occlusion": {"window": 0.5},
    "rise": {"n_masks": 12},
    "smooth_grad": {"n_samples": 3},
}
LAYERS = dict.fromkeys(
    ("ablation_cam", "activation", "eigen_cam", "finer_cam", "grad_cam", "grad_cam_pp", "guided_grad_cam", "hires_cam",
     "layer_cam", "score_cam", "xgrad_cam"), ("cnn", {"layer": "2"}),
)  # fmt: skip
CHANGES = {
    "attention_rollout": ("vit", {"discard_ratio": 0.5, "head_fusion": "max"}),
    "attention_x_gradient": ("vit", {"block": 0}),
    "attn_lrp": ("vit", {"conv_gamma": 0.0, "linear_gamma": 0.5}),
    "center_map": ("cnn", {"sigma": 0.5}),
    "channel_attention": ("se_cnn", {"gate": 0}),
    "class_attention": ("vit", {"block": 0, "head": 1}),
    "deep_lift": ("cnn", {"baseline": 0.5}),
    "eigen_cam": ("cnn", {"centered": True}),
    "finer_cam": ("cnn", {"alpha": 0.25, "rivals": 1}),
    "gradient_shap": ("cnn", {"n_samples": 4, "sigma": 0.2, "seed": 1}),
    "integrated_gradients": ("cnn", {"n_steps": 3, "baseline": 0.5, "rule": "riemann_middle"}),
    "kernel_shap": ("cnn", {"n_samples": 20, "baseline": 0.1, "seed": 1, "n_segments": 12}),
    "lime": ("cnn", {"n_samples": 20, "kernel_width": 1.0, "baseline": 0.1, "seed": 1, "n_segments": 12}),
    "occlusion": ("cnn", {"window": 0.25, "stride": 1.0, "baseline": 0.1}),
    "random_map": ("cnn", {"grid": 5, "seed": 1}),
    "rise": ("cnn", {"n_masks": 10, "grid": 4, "p_keep": 0.3, "baseline": 0.0, "seed": 1}),
    "se_activation": ("se_cnn", {"gate": 0}),
    "smooth_grad": ("cnn", {"n_samples": 4, "sigma": 0.3, "seed": 1}),
    "window_attention": ("swin", {"block": 0, "head": 1}),
}
SAME = {"integrated_gradients", "kernel_shap", "lime", "occlusion", "rise", "score_cam"}  # have `internal_batch_size`


def cases():
    """(method, model, option, value) of every option that changes the map."""
    found = [
        (name, model, option, value) for name, (model, given) in CHANGES.items() for option, value in given.items()
    ]
    return found + [(name, model, "layer", given["layer"]) for name, (model, given) in LAYERS.items()]


def test_the_table_knows_every_option():
    known = {(name, option) for name, _, option, _ in cases()} | {(name, "internal_batch_size") for name in SAME}
    assert known == {(method.name, option.name) for method, option in EVERY}


def explain(tiny, pictures, model, name, **options):
    model = tiny(model)
    return ac.make_explainer(model, name, **{**FAST.get(name, {}), **options}).explain(pictures(model), 3)


@pytest.mark.parametrize(("name", "model", "option", "value"), cases(), ids=lambda part: str(part))
def test_an_option_changes_the_map_and_is_kept_with_it(tiny, pictures, name, model, option, value):
    plain, changed = (explain(tiny, pictures, model, name, **given) for given in ({}, {option: value}))
    assert plain.options[option] == {**methods.get(name).resolve({}), **FAST.get(name, {})}[option]
    assert changed.options[option] == value != plain.options[option]
    assert {**changed.options, option: 0} == {**plain.options, option: 0}  # and nothing else
    one, other = plain.values, changed.values
    if one.shape == other.shape:
        assert (one - other).abs().max() > 1e-3 * one.abs().max()
    else:
        assert option in ("layer", "gate", "block")


@pytest.mark.parametrize("name", sorted(SAME))
def test_the_size_of_the_passes_changes_nothing(tiny, pictures, name):
    small, large = (explain(tiny, pictures, "cnn", name, internal_batch_size=batch) for batch in (1, 64))
    assert (small.options["internal_batch_size"], large.options["internal_batch_size"]) == (1, 64)
    span = float(large.values.max() - large.values.min())
    torch.testing.assert_close(small.values, large.values, atol=1e-5 * span, rtol=0)
    assert small.passes_forward == large.passes_forward


@pytest.mark.parametrize(("method", "option"), NUMBERS, ids=lambda one: one.name)
def test_a_number_outside_its_limits_is_refused(method, option):
    if option.name in COUNTED_BY_THE_MODEL:
        assert option.limits is None
        return
    low, high = option.limits
    step = 1 if option.kind is int else 1e-6
    for value in (low - step, high + (step if high < 1e9 else high)):
        with pytest.raises(SpecError, match=rf"^{method.name}\.{option.name} must (be positive|lie between .*), not "):
            method.resolve({option.name: value})
    for value in (low, high):
        assert method.resolve({option.name: option.kind(value)})[option.name] == value
    if option.kind is float:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(SpecError, match=f"{option.name} must"):
                method.resolve({option.name: value})


def wrong(option):
    """Values that are of no type for an option."""
    words = ["three", [1], {"a": 1}, b"1", True, "1"]
    if option.kind is bool:
        return [1, 0.0, "yes", None]
    if option.kind is str:
        return [3, 1.5, True, ["mean"], *([] if option.default is None else [None])]
    return words + ([1.5, 1.0] if option.kind is int else [1j]) + ([] if option.default is None else [None])


@pytest.mark.parametrize(("method", "option"), EVERY, ids=lambda one: one.name)
def test_a_value_of_the_wrong_type_is_refused(method, option):
    for value in wrong(option):
        with pytest.raises(SpecError, match=rf"^{method.name}\.{option.name} must (be an?|be one of) "):
            method.resolve({option.name: value})


@pytest.mark.parametrize(("method", "option"), [(m, o) for m, o in EVERY if o.choices], ids=lambda one: one.name)
def test_only_the_choices_are_taken(method, option):
    for value in option.choices:
        assert method.resolve({option.name: value})[option.name] == value
    with pytest.raises(SpecError, match=rf"must be one of \['{option.choices[0]}'.*\], not 'other'"):
        method.resolve({option.name: "other"})


@pytest.mark.parametrize("method", methods, ids=lambda one: one.name)
def test_an_unknown_option_is_refused(method):
    with pytest.raises((SpecError, UnknownNameError), match=rf"{method.name}.*'color'"):
        method.resolve({"color": 1})


@pytest.mark.parametrize(
    "method", [m for m in methods if any(o.name == "layer" for o in m.options)], ids=lambda m: m.name
)
def test_a_layer_that_is_none_is_refused_with_near_ones_before_anything_runs(tiny, method):
    if set(method.needs) <= tiny("cnn").supplies:
        with pytest.raises(UnknownNameError, match=r"tiny/cnn has no layer '55'; did you mean"):
            ac.make_explainer(tiny("cnn"), method.name, layer="55")


@pytest.mark.parametrize(
    ("name", "model", "options", "message"),
    [
        ("class_attention", "vit", {"block": 3}, "blocks 0 to 2"),
        ("class_attention", "vit", {"head": 2}, "head"),
        ("attention_x_gradient", "vit", {"block": -4}, "blocks 0 to 2"),
        ("window_attention", "swin", {"block": 2}, "block"),
        ("se_activation", "se_cnn", {"gate": -4}, "3 channel-attention layers"),
    ],
)
def test_a_number_that_the_model_does_not_have_is_refused(tiny, pictures, name, model, options, message):
    with pytest.raises((SpecError, UnknownNameError), match=message):
        explain(tiny, pictures, model, name, **options)


@pytest.mark.parametrize("name", [method.name for method, option in EVERY if option.name == "seed"])
def test_the_largest_seed_works(tiny, pictures, name):
    largest = next(option.limits[1] for option in methods.get(name).options if option.name == "seed")
    assert explain(tiny, pictures, "cnn", name, seed=int(largest)).values.std() > 0


def test_more_rivals_than_classes_are_all_of_them(tiny, pictures):
    found, every = (explain(tiny, pictures, "cnn", "finer_cam", rivals=rivals).values for rivals in (1000, 4))
    assert torch.equal(found, every)


def test_finer_cam_that_subtracts_nothing_is_grad_cam(tiny, pictures):
    found = explain(tiny, pictures, "vit", "finer_cam", alpha=0.0).values
    plain = explain(tiny, pictures, "vit", "grad_cam").values
    torch.testing.assert_close(found, plain, atol=1e-5 * float(plain.max()), rtol=0)
