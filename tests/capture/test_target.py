"""What is explained: indices, the model's own choice, embeddings, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.capture.target import TargetScore
from attncompare.errors import CaptureError, SpecError, UnsupportedMethodError
from attncompare.signals._base import request

GRADIENT_METHODS = ["layer_cam", "hires_cam", "saliency", "grad_cam", "integrated_gradients"]
SHARED_OR_ALONE = ["saliency", "grad_cam", "random_map"]


@pytest.mark.parametrize("method", ["saliency", "grad_cam", "integrated_gradients"])
@pytest.mark.parametrize(
    ("target", "meant"),
    [
        (3, [3, 3]),
        (np.int64(3), [3, 3]),
        (torch.tensor(3), [3, 3]),
        ([3, 1], [3, 1]),
        ((3, 1), [3, 1]),
        (np.array([3, 1]), [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
        (torch.tensor([3, 1], dtype=torch.int32), [3, 1]),
    ],
    ids=lambda case: f"{type(case).__name__} {case}",
)
def test_every_way_to_write_an_index_explains_those_classes(tiny, pictures, method, target, meant):
    model = tiny("vit")
    images = pictures(model)
    shown = ac.make_explainer(model, method).explain(images, target)
    assert shown.target.dtype == torch.int64
    assert shown.target.tolist() == meant
    for image in range(2):
        alone = ac.make_explainer(model, method).explain(images[image : image + 1], meant[image])
        torch.testing.assert_close(shown.values[image], alone.values[0], atol=1e-6, rtol=1e-3)


def test_none_explains_the_models_own_choice(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model, count=4)
    shown = ac.make_explainer(model, "layer_cam").explain(images)
    assert shown.target.tolist() == model.forward(images).argmax(dim=1).tolist()


def test_the_score_is_the_logit_before_softmax(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    plain = images.clone().requires_grad_(True)
    logits = model.forward(plain)
    expected = torch.autograd.grad(logits[:, 2].sum(), plain)[0]
    need = request("image_gradients")
    torch.testing.assert_close(record(model, images, [need], 2).signals[need], expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("method", SHARED_OR_ALONE)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, r"out of range: tiny/vit has classes 0 to 4"),
        (-1, "out of range"),
        ([0, 5], "out of range"),
        (torch.tensor([0, 7]), "out of range"),
        ([0, 1, 2], r"\(3,\) targets for 2 images"),
        (torch.tensor([[0, 1]]), r"\(1, 2\) targets for 2 images"),
        (1.5, "class indices, not torch.float32"),
        (torch.tensor([0.0, 1.0]), "class indices, not torch.float32"),
        (torch.tensor([True, False]), "class indices, not torch.bool"),
        ("embedding", "tiny/vit has a classifier; give a class index or none"),
        ("cat", "target 'cat' is not known"),
    ],
    ids=lambda case: str(case),
)
def test_a_target_that_means_nothing_is_refused(tiny, pictures, method, target, message):
    model = tiny("vit")
    with pytest.raises(SpecError, match=message):
        ac.make_explainer(model, method).explain(pictures(model), target)


@pytest.fixture
def named(build):
    return ac.wrap_model(build("cnn"), size=(32, 32), name="named/cnn", class_names=("ant", "bee", "cat", "dog", "elk"))


@pytest.mark.parametrize(
    ("target", "meant"), [("class:cat", [2, 2]), (["class:dog", "class:ant"], [3, 0]), (("class:elk",) * 2, [4, 4])]
)
@pytest.mark.parametrize("method", SHARED_OR_ALONE)
def test_a_class_may_be_named(named, pictures, method, target, meant):
    assert ac.make_explainer(named, method).explain(pictures(named), target).target.tolist() == meant


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("class:cats", r"named/cnn has no class named 'cats'; did you mean cat\?"),
        ("class:zebra", "named/cnn has no class named 'zebra'$"),
        (["class:cat", "bee"], "is not known here"),
        (["class:cat"], "1 targets for 2 images"),
        ("cat", "'class:NAME'"),
        ("text:a cat", "named/cnn has no text encoder"),
    ],
)
def test_a_name_that_means_nothing_is_refused(named, pictures, target, message):
    with pytest.raises(SpecError, match=message):
        ac.make_explainer(named, "saliency").explain(pictures(named), target)


@pytest.mark.parametrize("method", SHARED_OR_ALONE)
@pytest.mark.parametrize(
    "target",
    [[["a"], ["b"]], {"a": 1}, {1}, [None, None], b"x", 2**70, [0, "class:cat"]],
    ids=lambda case: str(case)[:20],
)
def test_what_is_no_target_at_all_is_refused_with_what_may_be_one(named, pictures, method, target):
    with pytest.raises(SpecError, match="is not known here; give a class index, None, 'class:NAME', 'text:PROMPT'"):
        ac.make_explainer(named, method).explain(pictures(named), target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("text:", "target 'text:' is empty; write the prompt behind the colon"),
        (["text:a cat", "text: "], "target 'text: ' is empty"),
        ("class:", "target 'class:' is empty; write the class behind the colon"),
        (["text:a cat", "class:cat"], "mix prompts and classes; explain them in two calls"),
    ],
    ids=str,
)
@pytest.mark.parametrize("embedding", [False, True])
def test_an_empty_or_mixed_target_is_refused_with_the_reason(build, pictures, embedding, target, message):
    kind = "embedding_cnn" if embedding else "cnn"
    model = ac.wrap_model(build(kind), size=(32, 32), embedding=embedding, encode_text=lambda _: torch.ones(12))
    with pytest.raises(SpecError, match=message):
        ac.make_explainer(model, "saliency").explain(pictures(model), target)


def test_a_name_that_two_classes_have_is_refused_with_their_numbers(build, pictures):
    names = ("ant", "crane", "cat", "crane", "elk")
    model = ac.wrap_model(build("cnn"), size=(32, 32), name="named/cnn", class_names=names)
    with pytest.raises(SpecError, match=r"named/cnn has 2 classes named 'crane'; give the index, one of \[1, 3\]"):
        ac.make_explainer(model, "saliency").explain(pictures(model), "class:crane")
    assert model.class_index("elk") == 4


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "rise", "saliency"])
def test_a_prompt_is_explained_alike_whether_or_not_the_model_is_called_an_embedding(build, pictures, method):
    directions = {"red": torch.tensor([1.0, -2, 0, 1, 3]), "blue": torch.tensor([0.0, 1, 2, -1, 1])}
    asked = []

    def encode(prompt):
        asked.append(prompt)
        return directions[prompt]

    maps = []
    for embedding in (False, True):
        model = ac.wrap_model(build("cnn"), size=(32, 32), embedding=embedding, encode_text=encode)
        asked.clear()
        maps.append(ac.make_explainer(model, method).explain(pictures(model), ["text:red", "text:blue"]).values)
        assert asked == ["red", "blue"]
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(maps[0], maps[1])


@pytest.mark.parametrize("target", [torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([0]), torch.tensor(0)])
def test_a_tensor_other_than_the_resolved_one_is_refused_for_an_embedding(tiny, pictures, target):
    model = tiny("embedding_cnn")
    with pytest.raises(SpecError, match="has no classifier; use 'embedding'"):
        ac.make_explainer(model, "saliency").explain(pictures(model), target)


def test_the_resolved_target_of_an_embedding_may_be_given_back(tiny, pictures):
    model = tiny("embedding_cnn")
    first = ac.make_explainer(model, "saliency").explain(pictures(model))
    again = ac.make_explainer(model, "saliency").explain(pictures(model), first.target)
    assert torch.equal(first.values, again.values)


@pytest.mark.parametrize("name", ["embedding_cnn", "embedding_vit"])
@pytest.mark.parametrize("target", [0, [0, 1], "cat", np.array([0, 1])], ids=str)
def test_a_class_of_an_embedding_model_is_refused(tiny, pictures, name, target):
    model = tiny(name)
    with pytest.raises(SpecError, match="has no classifier; use 'embedding'"):
        ac.make_explainer(model, "saliency").explain(pictures(model), target)


@pytest.mark.parametrize("name", ["embedding_cnn", "embedding_vit"])
@pytest.mark.parametrize("target", [None, "embedding"])
def test_an_embedding_is_explained_by_its_product_with_the_clean_direction(tiny, pictures, name, target):
    model = tiny(name)
    images = pictures(model)
    plain = images.clone().requires_grad_(True)
    embedded = model.forward(plain)
    clean = embedded.detach()
    score = sum((embedded[b] * clean[b]).sum() / clean[b].norm() for b in range(2))
    expected = torch.autograd.grad(score, plain)[0]
    need = request("image_gradients")
    actual = record(model, images, [need], target).signals[need]
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_the_cosine_itself_would_have_no_gradient(tiny, pictures):
    model = tiny("embedding_vit")
    plain = pictures(model).requires_grad_(True)
    embedded = model.forward(plain)
    cosine = F.cosine_similarity(embedded, embedded.detach()).sum()
    need = request("image_gradients")
    used = record(model, plain.detach(), [need]).signals[need]
    assert torch.autograd.grad(cosine, plain)[0].abs().max() < 1e-4 * used.abs().max()


@pytest.mark.parametrize("name", ["embedding_cnn", "embedding_vit"])
def test_the_similarity_of_the_clean_image_is_one_and_of_others_below(tiny, pictures, name):
    model = tiny(name)
    with torch.no_grad():
        clean, other = model.forward(pictures(model)), model.forward(pictures(model, seed=5))
    scored = TargetScore.of(model, clean, "embedding")
    which = torch.tensor([0, 1])
    torch.testing.assert_close(scored.probability(clean, which), torch.ones(2), atol=1e-6, rtol=0)
    by_hand = [float((other[b] @ clean[b]) / other[b].norm() / clean[b].norm()) for b in range(2)]
    assert scored.probability(other, which).tolist() == pytest.approx(by_hand, abs=1e-5)
    assert max(by_hand) < 1 - 1e-4


def test_the_probability_of_altered_copies_is_that_of_their_own_target(tiny, pictures):
    model = tiny("cnn")
    with torch.no_grad():
        clean, altered = model.forward(pictures(model)), model.forward(pictures(model, count=3, seed=5))
    scored = TargetScore.of(model, clean, [4, 2])
    which = torch.tensor([1, 0, 1])
    expected = [float(altered[i].exp()[t] / altered[i].exp().sum()) for i, t in enumerate((2, 4, 2))]
    assert scored.probability(altered, which).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["embedding_cnn", "embedding_vit"])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradient_methods_explain_embeddings_image_by_image(tiny, pictures, name, method):
    model = tiny(name)
    images = pictures(model, count=3)
    explainer = ac.make_explainer(model, method)
    together = explainer.explain(images, "embedding").values
    alone = torch.cat([explainer.explain(image[None], "embedding").values for image in images])
    assert together.abs().max() > 0
    torch.testing.assert_close(together, alone, atol=1e-5 * float(together.abs().max()), rtol=1e-3)


def zero_headed(build, name):
    module = build(name)
    head = module[8] if name == "cnn" else module.head
    nn.init.zeros_(head.weight)
    return ac.wrap_model(module, size=(32, 32), name=f"zero/{name}")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[("cnn", method) for method in GRADIENT_METHODS],
        *[("vit", method) for method in (*GRADIENT_METHODS, "gradient_rollout")],
    ],
)
def test_a_gradient_of_zero_is_a_failure_with_the_reason(build, pictures, name, method):
    model = zero_headed(build, name)
    with pytest.raises(CaptureError, match=rf"{method}: .*gradient .* zero .*zero/{name}"):
        ac.make_explainer(model, method).explain(pictures(model))


def test_a_gradient_of_zero_names_the_image(build, pictures):
    module = build("cnn")
    with torch.no_grad():
        module[8].weight[3] = 0
    model = ac.wrap_model(module, size=(32, 32))
    images = pictures(model, count=3)
    with pytest.raises(CaptureError, match="for image 1"):
        ac.make_explainer(model, "layer_cam").explain(images, [0, 3, 2])
    assert ac.make_explainer(model, "layer_cam").explain(images, [0, 1, 2]).values.shape == (3, 16, 16)


def test_a_map_that_the_relu_emptied_is_no_failure(tiny, pictures):
    model = tiny("cnn")
    maps = ac.explain_together(model, ["grad_cam", "hires_cam"], pictures(model), 1)
    assert maps["hires_cam"].values.max() <= 0  # every place speaks against class 1
    assert (maps["grad_cam"].values == 0).all()


def test_methods_without_gradients_work_where_the_gradient_is_zero(build, pictures):
    model = zero_headed(build, "vit")
    shown = ac.explain_together(model, ["attention_rollout", "class_attention", "random_map"], pictures(model))
    assert all(one.values.std() > 0 for one in shown.values())


def test_a_layer_behind_the_last_attention_has_no_gradient_on_the_patches(tiny, pictures):
    model = tiny("vit")
    with pytest.raises(CaptureError, match="layer_cam: the gradient of the score is zero"):
        ac.make_explainer(model, "layer_cam", layer="blocks.2.norm2").explain(pictures(model))


def test_only_the_method_without_a_gradient_is_blamed(tiny, pictures):
    model = tiny("vit")
    requests = ["saliency", ("layer_cam", {"layer": "blocks.2.norm2"})]
    with pytest.raises(CaptureError, match=r"^layer_cam: "):
        ac.explain_together(model, requests, pictures(model))


def test_a_black_image_has_a_gradient_and_is_explained(tiny):
    model = tiny("cnn")
    shown = ac.make_explainer(model, "saliency").explain(torch.zeros(1, 3, 32, 32), 1)
    assert shown.values.max() > 0


def test_logits_that_are_not_finite_are_a_failure(tiny, pictures, build):
    module = build("cnn")
    with torch.no_grad():
        module[8].weight[0] = 1e38
        module[4].weight *= 1e6
    model = ac.wrap_model(module, size=(32, 32))
    with pytest.raises(CaptureError, match="non-finite"):
        ac.make_explainer(model, "layer_cam").explain(pictures(model), 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 32, 48), r"images have shape \(2, 3, 32, 48\); tiny/cnn needs \(B, 3, 32, 32\)"),
        (torch.rand(3, 32, 32), r"images have shape \(3, 32, 32\)"),
        (torch.rand(2, 1, 32, 32), r"shape \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "torch.uint8; float32"),
        (torch.full((2, 3, 32, 32), 255.0), r"images range from 255 to 255"),
        (torch.full((2, 3, 32, 32), -1.0), "do not normalize them yourself"),
        (torch.full((2, 3, 32, 32), float("nan")), "range from nan"),
        (torch.rand(0, 3, 32, 32), "image"),
    ],
    ids=["oblong", "no batch", "gray", "bytes", "to 255", "normalized", "nan", "none at all"],
)
def test_images_that_are_not_what_the_model_takes_are_refused(tiny, images, message):
    with pytest.raises(SpecError, match=message):
        ac.make_explainer(tiny("cnn"), "saliency").explain(images)


def difference(outputs):
    """How much more the model says 2 than 4."""
    return outputs[:, 2] - outputs[:, 4]


LINEAR_IN_THE_SCORE = {
    "input_x_gradient": {},
    "hires_cam": {},
    "integrated_gradients": {"n_steps": 3},
    "gradient_shap": {"n_samples": 3},
    "occlusion": {"window": 0.5},
    "attn_lrp": {},
}


@pytest.mark.parametrize("name", ["cnn", "vit", "swin"])
@pytest.mark.parametrize("method", LINEAR_IN_THE_SCORE)
def test_a_method_that_is_linear_in_the_score_gives_the_difference_of_two_maps(tiny, pictures, name, method):
    if method == "attn_lrp":
        name = {"cnn": "vit_mean"}.get(name, name)
    model = tiny(name)
    images = pictures(model)
    options = {"linear_gamma": 0.0, "conv_gamma": 0.0} if method == "attn_lrp" else LINEAR_IN_THE_SCORE[method]
    explainer = ac.make_explainer(model, method, **options)
    one, other, both = (explainer.explain(images, target).values for target in (2, 4, difference))
    assert one.std() > 0 and other.std() > 0
    torch.testing.assert_close(both, one - other, atol=2e-5 * float(one.abs().max() + other.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "method", ["saliency", "layer_cam", "grad_cam", "gradient_rollout", "legrad", "class_attention"]
)
def test_a_function_that_picks_a_logit_is_that_class(tiny, pictures, method):
    model = tiny("vit")
    images = pictures(model)
    explainer = ac.make_explainer(model, method)
    chosen, picked = explainer.explain(images, 3), explainer.explain(images, lambda outputs: outputs[:, 3])
    torch.testing.assert_close(picked.values, chosen.values, atol=1e-6 * float(chosen.values.abs().max()), rtol=0)
    assert picked.target.tolist() == [-1, -1]
    assert chosen.target.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_ablation_of_a_function_is_that_of_its_logit(tiny, pictures, name):
    """By the head of the model alone, since the closed form is that of a class."""
    model = tiny(name)
    images = pictures(model)
    explainer = ac.make_explainer(model, "ablation_cam")
    chosen, picked = explainer.explain(images, 3), explainer.explain(images, lambda outputs: outputs[:, 3])
    torch.testing.assert_close(picked.values, chosen.values, atol=1e-4 * float(chosen.values.max()), rtol=0)
    assert picked.passes_forward == 2


def rise_by_hand(model, images, function, **options):
    from attncompare.methods.rise import rise

    def score(copies, which):
        with torch.no_grad():
            return function(model.forward(copies))

    return rise(images, score, **options)


def test_rise_weighs_its_masks_by_the_function_itself(tiny, pictures):
    model = tiny("cnn")
    images, options = pictures(model), {"n_masks": 10, "internal_batch_size": 4}
    found = ac.make_explainer(model, "rise", **options).explain(images, difference).values
    expected = rise_by_hand(model, images, difference, **options)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def test_lime_and_kernel_shap_see_the_function_itself(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    for method in ("lime", "kernel_shap"):
        explainer = ac.make_explainer(model, method, n_samples=20, n_segments=6)
        found, flipped = (
            explainer.explain(images, target).values for target in (difference, lambda outputs: -difference(outputs))
        )
        torch.testing.assert_close(flipped, -found, atol=1e-4 * float(found.abs().max()), rtol=0)
        assert found.abs().max() > 0


def test_each_image_of_a_batch_has_its_own_score(tiny, pictures):
    model = tiny("vit")
    images = pictures(model, count=3)
    for method in ("saliency", "grad_cam", "integrated_gradients", "transformer_lrp", "attn_lrp"):
        explainer = ac.make_explainer(model, method)
        together = explainer.explain(images, difference).values
        alone = torch.cat([explainer.explain(image[None], difference).values for image in images])
        torch.testing.assert_close(together, alone, atol=1e-5 * float(together.abs().max()), rtol=0)


def test_a_function_explains_an_embedding_too(tiny, pictures):
    model = tiny("embedding_vit")
    images = pictures(model)
    plain = images.clone().requires_grad_(True)
    expected = torch.autograd.grad(model.forward(plain)[:, 5].sum(), plain)[0].abs().amax(1)
    found = ac.make_explainer(model, "saliency").explain(images, lambda outputs: outputs[:, 5])
    torch.testing.assert_close(found.values, expected, atol=1e-6 * float(expected.max()), rtol=1e-4)


@pytest.mark.parametrize("method", [*SHARED_OR_ALONE, "rise", "ablation_cam"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs: outputs, r"the target function returned \(2, 5\) for outputs \(2, 5\); \(2,\) is needed"),
        (lambda outputs: outputs.sum(), r"returned \(\) for outputs \(2, 5\)"),
        (lambda outputs: outputs[:1, 0], r"returned \(1,\) for outputs"),
        (lambda outputs: 1.0, "returned float for outputs"),
        (lambda outputs: None, "returned NoneType"),
        (
            lambda outputs: outputs[:, 0] - outputs[:, 0].mean(),
            "mixes images: it must make each score from that image's row",
        ),
        (lambda outputs: outputs[:, 0].flip(0), "mixes images"),
    ],
    ids=["all", "sum", "first", "number", "nothing", "mean", "flipped"],
)
def test_a_function_that_does_not_make_one_score_of_each_row_is_refused(tiny, pictures, method, function, message):
    options = {"n_masks": 4} if method == "rise" else {}
    with pytest.raises(SpecError, match=message):
        ac.make_explainer(tiny("vit"), method, **options).explain(pictures(tiny("vit")), function)


@pytest.mark.parametrize(
    ("method", "signal"), [("cam", "classifier_weights"), ("finer_cam", "class_scores")], ids=["cam", "finer_cam"]
)
def test_methods_of_a_class_refuse_a_function(tiny, pictures, method, signal):
    with pytest.raises(UnsupportedMethodError, match=f"{signal} belong to a class; the target is a function"):
        ac.make_explainer(tiny("cnn"), method).explain(pictures(tiny("cnn")), difference)


def test_a_function_without_a_gradient_is_a_failure_with_the_reason(tiny, pictures):
    model = tiny("vit")
    for method in ("saliency", "grad_cam", "integrated_gradients", "legrad", "transformer_lrp", "attn_lrp"):
        with pytest.raises(CaptureError, match="gradient"):
            ac.make_explainer(model, method).explain(pictures(model), lambda outputs: outputs[:, 0].detach())


def test_the_score_of_a_map_is_that_of_its_function(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    shown = ac.make_explainer(model, "saliency").explain(images, difference)
    records = ac.score(model, images, shown, metrics=["deletion"], protocol="rise-fast", target=difference)
    with torch.no_grad():
        clean = difference(model.forward(images)).tolist()
    assert [record.target for record in records] == [-1, -1]
    assert [record.status for record in records] == ["ok", "ok"]
    assert [record.curve[0] for record in records] == pytest.approx(clean, abs=1e-5)


def test_what_a_map_was_made_for_is_asked_where_only_the_caller_knows_and_nowhere_else(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model)
    explainer = ac.make_explainer(model, "saliency")
    of_function, of_class = explainer.explain(images, difference), explainer.explain(images, 2)
    options = {"metrics": ["deletion"], "protocol": "rise-fast"}
    for target in (None, 3):
        with pytest.raises(SpecError, match="explains a function of the outputs: give that function as target="):
            ac.score(model, images, of_function, **options, target=target)
    with pytest.raises(SpecError, match="the target is the one the map was made for; only a function is given again"):
        ac.score(model, images, of_class, **options, target=difference)


def test_a_class_given_again_where_the_map_knows_its_own_is_refused(tiny, pictures):
    """Else a score for class 3 could be taken for that of a map of class 2."""
    model = tiny("cnn")
    images = pictures(model)
    shown = ac.make_explainer(model, "saliency").explain(images, 2)
    with pytest.raises(SpecError, match="the target is the one the map was made for"):
        ac.score(model, images, shown, metrics=["deletion"], protocol="rise-fast", target=3)


def test_scores_of_two_functions_have_two_keys(tiny, pictures):
    """A key says what a value depends on."""
    model = tiny("cnn")
    images = pictures(model)
    shown = ac.make_explainer(model, "edge_map").explain(images, difference)
    options = {"metrics": ["deletion"], "protocol": "rise-fast"}
    records = [
        ac.score(model, images, shown, **options, target=target)[0]
        for target in (difference, lambda outputs: outputs[:, 0])
    ]
    assert records[0].value != records[1].value
    assert records[0].key != records[1].key


def test_the_only_logit_of_a_model_is_a_probability_by_the_sigmoid():
    raw = torch.tensor([[-1.0], [0.0], [2.0]])
    scored = TargetScore(torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(scored.probability(raw, torch.zeros(3, dtype=torch.int64)), raw[:, 0].sigmoid())


def test_a_text_encoder_may_attend_to_as_many_tokens_as_the_image_has(build):
    module = build("vit")

    def encode(prompt):
        tokens = torch.rand(1, 2, 17, 8, generator=torch.Generator().manual_seed(len(prompt)))
        return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten()[:5]

    model = ac.wrap_model(module, size=(32, 32), embedding=True, encode_text=encode)
    assert model.tokens.length == 17
    images = torch.rand(2, 3, 32, 32)
    found = ac.explain_together(model, ["attention_rollout", "gradient_rollout"], images, "text:a cat")
    score = torch.cosine_similarity(model.forward(images), encode("a cat")[None])
    torch.testing.assert_close(found["attention_rollout"].probability, score.detach())


def test_a_text_encoder_runs_in_evaluation_mode_and_leaves_no_trace(build):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.words = build("embedding_vit"), nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))

        def forward(self, images):
            return self.image(images)

        def encode(self, prompt):
            return self.words(torch.linspace(1, 2, 8)[None].expand(2, 8))[0].repeat(4)[: self.width]

    net = Pair().train()
    net.width = net.image(torch.rand(2, 3, 32, 32)).shape[1]
    model = ac.wrap_model(net, size=(32, 32), embedding=True, encode_text=net.encode)
    images, rng = torch.rand(2, 3, 32, 32), torch.get_rng_state()
    first, second = (ac.explain_together(model, ["saliency"], images, "text:a cat")["saliency"] for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(net.words[0].running_mean, torch.zeros(8)) and net.words[0].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), rng) and all(module.training for module in net.words.modules())
