"""Several targets of one image: the maps of single calls, for one forward pass and a backward pass each."""

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.errors import CaptureError, SpecError, UnsupportedMethodError
from attncompare.methods._base import methods

TARGETS = [3, 0, 4]
QUICK = {
    "rise": {"n_masks": 8},
    "smooth_grad": {"n_samples": 2},
    "integrated_gradients": {"n_steps": 3},
    "occlusion": {"window": 0.5},
    "gradient_shap": {"n_samples": 2},
    "lime": {"n_samples": 12, "n_segments": 6},
    "kernel_shap": {"n_samples": 12, "n_segments": 6},
    "score_cam": {"internal_batch_size": 64},
}
REFUSED = {  # where the signals are there and the method still refuses
    "deep_lift": ("vit", "vit_torchvision", "swin", "se_cnn"),
    "xgrad_cam": ("vit", "vit_torchvision", "swin"),  # some of their channels nearly cancel
}
ONE_PASS = ("saliency", "input_x_gradient", "layer_cam", "hires_cam", "grad_cam_pp", "gradient_rollout", "eigen_cam")


def requests(model):
    """Every method that the model supports, with few steps."""
    name = model.name.removeprefix("tiny/").removeprefix("demo/").removesuffix("@random")
    return [
        (method.name, QUICK.get(method.name, {}))
        for method in methods
        if set(method.needs) <= model.supplies and name not in REFUSED.get(method.name, ())
    ]


@pytest.mark.parametrize("name", ["cnn", "se_cnn", "vit", "vit_torchvision", "swin"])
def test_the_maps_are_those_of_single_targets(tiny, pictures, name):
    model = tiny(name)
    image, wanted = pictures(model, 1), requests(model)
    if name == "se_cnn":  # 128 passes a target
        wanted = [(method, options) for method, options in wanted if method != "score_cam"]
    assert len(wanted) > 18
    together = ac.explain_targets(model, wanted, image, TARGETS)
    assert list(together) == [method for method, _ in wanted]
    for row, target in enumerate(TARGETS):
        alone = ac.explain_together(model, wanted, image, target)
        for method, _ in wanted:
            shown, single = together[method], alone[method]
            assert shown.target.tolist() == TARGETS
            assert shown.values.shape == (len(TARGETS), *single.values.shape[1:])
            span = float(single.values.abs().max())
            # A change of the score at rounding level of the score itself is no change of a map.
            rounding = 5e-7 if method in ("occlusion", "ablation_cam") else 0.0
            allowed = 1e-5 * span + rounding
            assert torch.allclose(shown.values[row], single.values[0], atol=allowed, rtol=0), method
            assert dict(shown.options) == dict(single.options)
            assert list(shown.detail) == list(single.detail)
            for key, value in shown.detail.items():
                torch.testing.assert_close(value[row], single.detail[key][0], atol=1e-5, rtol=1e-4)


def watch(model, monkeypatch):
    """Lists that grow with every image that reaches the first convolution, and with every backward pass from the logits."""
    rows, backward = [], []
    plain = torch.nn.Conv2d._conv_forward

    def counting(self, given, weight, bias):
        if weight.shape[1] == 3:
            rows.append(len(given))
        return plain(self, given, weight, bias)

    def seen(module, args, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: backward.append(len(gradient)))

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", counting)
    model.module.register_forward_hook(seen)
    return rows, backward


@pytest.mark.parametrize("name", ["cnn", "vit", "vit_torchvision"])
def test_the_shared_pass_is_one_forward_and_a_backward_for_each_target(fresh, pictures, monkeypatch, name):
    model = fresh(name)
    shared = [method for method in ONE_PASS if set(methods.get(method).needs) <= model.supplies]
    image = pictures(model, 1)
    ac.explain_targets(model, shared, image, TARGETS)  # the first time, one more forward pass checks the logits
    rows, backward = watch(model, monkeypatch)
    found = ac.explain_targets(model, shared, image, TARGETS)
    assert sum(rows) == 1
    assert len(backward) == len(TARGETS)
    for method, shown in found.items():
        gradients = 0 if method == "eigen_cam" else 1
        assert (shown.passes_forward, shown.passes_backward) == (pytest.approx(1 / 3), gradients), method


@pytest.mark.parametrize("name", ["cnn", "vit", "swin"])
def test_grad_cam_runs_the_trunk_once_and_the_head_backward_for_each_target(fresh, pictures, monkeypatch, name):
    model = fresh(name)
    image = pictures(model, 1)
    ac.explain_targets(model, ["grad_cam"], image, TARGETS)
    rows, backward = watch(model, monkeypatch)
    shown = ac.explain_targets(model, ["grad_cam"], image, TARGETS)["grad_cam"]
    assert rows == [1]
    assert sum(backward) == len(TARGETS)
    assert (shown.passes_forward, shown.passes_backward) == (pytest.approx(1 / 3), 1.0)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_finer_cam_runs_the_trunk_once_too(fresh, pictures, monkeypatch, name):
    model = fresh(name)
    image = pictures(model, 1)
    ac.explain_targets(model, ["finer_cam"], image, TARGETS)
    rows, backward = watch(model, monkeypatch)
    ac.explain_targets(model, ["finer_cam"], image, TARGETS)
    assert rows == [1, 1]
    assert sum(backward) == len(TARGETS)


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "ablation_cam", "legrad", "transformer_lrp", "lime"])
def test_one_target_is_a_call_with_one_target(tiny, pictures, method):
    model = tiny("vit")
    image, request = pictures(model, 1), (method, QUICK.get(method, {}))
    found = ac.explain_targets(model, [request], image, [2])[method]
    alone = ac.explain_together(model, [request], image, 2)[method]
    assert found.values.shape == (1, *alone.values.shape[1:])
    torch.testing.assert_close(found.values, alone.values)
    assert found.target.tolist() == [2]


@pytest.mark.parametrize(
    "targets", [(3, 0, 4), torch.tensor(TARGETS), np.array(TARGETS)], ids=["tuple", "tensor", "array"]
)
def test_any_sequence_of_indices_will_do(tiny, pictures, targets):
    model = tiny("cnn")
    shown = ac.explain_targets(model, ["saliency", "grad_cam", "random_map"], pictures(model, 1), targets)
    assert all(one.target.tolist() == TARGETS for one in shown.values())


def test_the_same_target_twice_gives_the_same_map_twice(tiny, pictures):
    for method in ("saliency", "grad_cam", "lime", "ablation_cam"):
        shown = ac.explain_targets(tiny("vit"), [(method, QUICK.get(method, {}))], pictures(tiny("vit"), 1), [1, 1])[
            method
        ].values
        torch.testing.assert_close(shown[0], shown[1], atol=1e-6 * float(shown.abs().max()), rtol=0)


def test_class_blind_methods_repeat_their_map(tiny, pictures):
    model = tiny("vit")
    blind = [m.name for m in methods if not m.class_sensitive and set(m.needs) <= model.supplies]
    for shown in ac.explain_targets(model, blind, pictures(model, 1), TARGETS).values():
        assert len(shown.values) == 3
        assert torch.equal(shown.values[0], shown.values[1]) and torch.equal(shown.values[0], shown.values[2])


def named(build):
    return ac.wrap_model(build("cnn"), size=(32, 32), name="named/cnn", class_names=("ant", "bee", "cat", "dog", "elk"))


def test_classes_may_be_named(build, pictures):
    model = named(build)
    image = pictures(model, 1)
    by_name = ac.explain_targets(model, ["saliency", "grad_cam"], image, ["class:dog", "class:ant"])
    by_index = ac.explain_targets(model, ["saliency", "grad_cam"], image, [3, 0])
    for method, shown in by_name.items():
        assert shown.target.tolist() == [3, 0]
        assert shown.prompts == ()
        assert torch.equal(shown.values, by_index[method].values)


def test_texts_are_explained_one_by_one(build, pictures):
    directions = {"red": torch.tensor([1.0, -2, 0, 1, 3]), "blue": torch.tensor([0.0, 1, 2, -1, 1])}
    model = ac.wrap_model(build("vit"), size=(32, 32), embedding=True, encode_text=directions.__getitem__)
    image, wanted = (
        pictures(model, 1),
        ["saliency", "grad_cam", "gradient_rollout", "legrad", "attn_lrp", "ablation_cam"],
    )
    found = ac.explain_targets(model, wanted, image, ["text:red", "text:blue"])
    for row, prompt in enumerate(("text:red", "text:blue")):
        alone = ac.explain_together(model, wanted, image, prompt)
        for method, shown in found.items():
            assert shown.prompts == ("text:red", "text:blue")
            span = float(alone[method].values.abs().max())
            torch.testing.assert_close(shown.values[row], alone[method].values[0], atol=1e-5 * span, rtol=0)
    assert (found["saliency"].values[0] - found["saliency"].values[1]).abs().max() > 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], r"targets \[\]: a sequence of class indices or strings is needed"),
        ("class:cat", "targets 'class:cat': a sequence"),
        (torch.tensor([], dtype=torch.int64), "a sequence of class indices"),
        ([0, 5], "out of range: named/cnn has classes 0 to 4"),
        ([-1], "out of range"),
        (["class:cat", "class:fox"], "no class named 'fox'"),
        ([0, "class:cat"], "is not known here"),
        ([0.5, 1.0], "class indices, not torch.float32"),
        ([[0, 1]], r"\(1, 2\) targets for 1 images"),
        (["text:a cat"], "has no text encoder"),
    ],
    ids=str,
)
def test_targets_that_mean_nothing_are_refused(build, pictures, targets, message):
    model = named(build)
    with pytest.raises(SpecError, match=message):
        ac.explain_targets(model, ["saliency"], pictures(model, 1), targets)


@pytest.mark.parametrize(
    "target", [3, None, torch.tensor(3), lambda outputs: outputs[:, 0]], ids=["index", "none", "tensor", "function"]
)
def test_what_is_no_sequence_is_refused_with_what_is_needed(build, pictures, target):
    model = named(build)
    with pytest.raises(SpecError, match="a sequence of class indices or strings is needed"):
        ac.explain_targets(model, ["saliency"], pictures(model, 1), target)


def test_several_images_are_refused(tiny, pictures):
    with pytest.raises(SpecError, match=r"2 images were given; explain_targets takes one, \(1, 3, H, W\)"):
        ac.explain_targets(tiny("cnn"), ["saliency"], pictures(tiny("cnn"), 2), [0, 1])


def test_an_embedding_has_no_classes_to_list(tiny, pictures):
    model = tiny("embedding_cnn")
    with pytest.raises(SpecError, match="has no classifier; use 'embedding'"):
        ac.explain_targets(model, ["saliency"], pictures(model, 1), [0, 1])


def test_a_method_that_the_model_cannot_supply_is_refused_before_anything_runs(fresh, pictures):
    model, ran = fresh("cnn"), []
    model.module.register_forward_pre_hook(lambda *args: ran.append(1))
    with pytest.raises(UnsupportedMethodError, match="legrad needs block_gradients"):
        ac.explain_targets(model, ["saliency", "legrad"], pictures(model, 1), [0, 1])
    assert ran == []


def test_a_gradient_of_zero_names_the_target_that_has_none(build, pictures):
    module = build("cnn")
    with torch.no_grad():
        module[8].weight[3] = 0
    model = ac.wrap_model(module, size=(32, 32))
    for method in ("saliency", "grad_cam", "layer_cam"):
        with pytest.raises(CaptureError, match=rf"^{method}: .*is zero.* image 1"):
            ac.explain_targets(model, [method], pictures(model, 1), [0, 3])


@pytest.mark.parametrize("name", ["cnn", "hf_vit", "swin"])
def test_the_models_own_choice_costs_grad_cam_no_pass_of_its_own(fresh, pictures, name):
    model, ran = fresh(name), []
    images = pictures(model)
    with torch.no_grad():
        chosen = model.forward(images).argmax(dim=1)
    expected = ac.make_explainer(model, "grad_cam").explain(images, chosen)
    model.module.register_forward_hook(lambda *args: ran.append(1))
    shown = ac.make_explainer(model, "grad_cam").explain(images)
    assert len(ran) == 1
    assert len(set(chosen.tolist()) | {0}) > 1  # another target than the one that stands in before the pass
    assert shown.target.tolist() == chosen.tolist()
    torch.testing.assert_close(shown.values, expected.values)
    assert (shown.passes_forward, shown.passes_backward) == (1, 1)
