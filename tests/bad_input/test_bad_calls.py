"""Images, targets, methods, masks and maps that mean nothing, handed to explain and score."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.errors import AttnCompareError, CaptureError, SpecError


@pytest.fixture(scope="module")
def model():
    return ac.load_model("demo/cnn")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


IMAGES = {
    "array": (lambda x: x.numpy(), "a ndarray; a tensor is needed"),
    "list": (lambda x: [x[0]], "a list; a tensor is needed"),
    "nothing": (lambda x: None, "a NoneType; a tensor is needed"),
    "path": (lambda x: "cat.png", "a str; a tensor is needed"),
    "one image": (lambda x: x[0], r"shape \(3, 64, 64\)"),
    "no image": (lambda x: x[:0], "no images were given"),
    "gray": (lambda x: x[:, :1], r"shape \(2, 1, 64, 64\)"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"shape \(2, 64, 64, 3\)"),
    "other size": (lambda x: x[:, :, :32], r"needs \(B, 3, 64, 64\)"),
    "bytes": (lambda x: (x * 255).byte(), "uint8; float32 in .*divide by 255"),
    "0 to 255": (lambda x: x * 255, r"range from .* to 255; \[0, 1\] is needed"),
    "normalized": (lambda x: x * 2 - 1, r"range from -1 to 1; \[0, 1\] is needed"),
    "nan": (lambda x: x.masked_fill(x > 0.99, torch.nan), "range from nan"),
    "infinite": (lambda x: x.masked_fill(x > 0.99, torch.inf), "to inf"),
    "complex": (lambda x: x.to(torch.complex64), "complex64; float32"),
    "sparse": (lambda x: x.to_sparse(), "dense tensor is needed"),
    "without values": (lambda x: x.to("meta"), "dense tensor is needed"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_are_none_are_refused(model, images, kind):
    change, words = IMAGES[kind]
    for call in (
        lambda x: ac.explain_together(model, ["cam"], x),
        lambda x: ac.explain_targets(model, ["cam"], x, [0]),
        lambda x: ac.make_explainer(model, "random_map").explain(x),
    ):
        with pytest.raises(SpecError, match=words):
            call(change(images))


ALIKE = {
    "double": lambda x: x.double(),
    "with a graph": lambda x: x.clone().requires_grad_(),
    "not contiguous": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels last in memory": lambda x: x.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_unusual_tensors_have_the_same_maps(model, images, kind, recwarn):
    explainer = ac.make_explainer(model, "saliency")
    given = ALIKE[kind](images)
    torch.testing.assert_close(explainer.explain(given).values, explainer.explain(images).values)
    assert given.grad is None and not recwarn.list


TARGETS = {
    "too large": (8, r"out of range: demo/cnn has classes 0 to 7"),
    "negative": (-1, "out of range"),
    "one of two out of range": ([0, 9], "out of range"),
    "huge": (10**30, "not known here"),
    "too few": ([0], r"\(1,\) targets for 2 images"),
    "too many": ([0, 1, 2], r"\(3,\) targets for 2 images"),
    "none": ([], "targets"),
    "a column": (torch.tensor([[0], [1]]), r"\(2, 1\) targets for 2 images"),
    "a fraction": (1.5, "class indices, not torch.float32"),
    "nan": (float("nan"), "class indices, not torch.float32"),
    "floats": (torch.tensor([0.0, 1.0]), "class indices, not torch.float32"),
    "true": (True, "class indices, not torch.bool"),
    "truth values": ([True, False], "class indices, not torch.bool"),
    "complex": (1j, "class indices"),
    "a word": ("disk", "not known here"),
    "label": ("label", "not known here"),
    "no class": ("class:", "is empty"),
    "an unknown class": ("class:dsk", "no class named 'dsk'; did you mean disk"),
    "no prompt": ("text:", "is empty"),
    "a prompt": ("text:a disk", "no text encoder"),
    "embedding": ("embedding", "has a classifier"),
    "mixed": (["class:disk", 1], "not known here"),
    "bytes": (b"disk", "not known here"),
    "a mapping": ({"disk": 1}, "not known here"),
    "words in an array": (np.array(["a", "b"]), "not known here"),
    "a function of one number": (lambda y: y.sum(), r"returned \(\) for outputs"),
    "a function of text": (lambda y: "high", "returned str for outputs"),
    "a function that mixes": (lambda y: y[:, 0] - y[:, 0].mean(), "mixes images"),
    "a function of nan": (lambda y: y[:, 0] * torch.nan, "values that are not finite"),
    "a function without a graph": (lambda y: y[:, 0].detach(), "no gradient of the score"),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_a_target_that_means_nothing_is_refused(model, images, kind, method):
    target, words = TARGETS[kind]
    options = {"n_steps": 2} if method == "integrated_gradients" else {}
    with pytest.raises((SpecError, CaptureError), match=words) as caught:
        ac.make_explainer(model, method, **options).explain(images, target)
    assert "\n" not in str(caught.value)


REQUESTS = {
    "nothing": ([None], "None is neither a name nor"),
    "half a pair": ([("cam",)], r"neither a name nor \(name, options\)"),
    "options nothing": ([("grad_cam", None)], "neither a name nor"),
    "a number": ([3], "3 is neither"),
    "twice": (["cam", "cam"], "asked for twice"),
    "an unknown option": ([("grad_cam", {"layr": "1"})], "unknown option of grad_cam 'layr'; did you mean layer"),
    "a layer that is not there": ([("grad_cam", {"layer": "9"})], "has no layer '9'"),
    "a layer off the image": ([("grad_cam", {"layer": "5"})], "does not lie on an image"),
    "a layer that is no name": ([("grad_cam", {"layer": 2})], "layer must be a str"),
    "a count that is none": ([("rise", {"n_masks": -1})], "n_masks must be positive"),
    "a count of true": ([("rise", {"n_masks": True})], "n_masks must be an int"),
    "endless": ([("rise", {"n_masks": 10**30})], "n_masks must lie between"),
    "a share that is none": ([("rise", {"p_keep": float("nan")})], "p_keep must"),
    "seed negative": ([("random_map", {"seed": -1})], "seed must lie between"),
    "seed huge": ([("random_map", {"seed": 2**70})], "seed must lie between"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_method_that_is_none_is_refused(model, images, kind):
    requests, words = REQUESTS[kind]
    with pytest.raises(AttnCompareError, match=words):
        ac.explain_together(model, requests, images)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("demo/cnn", "is a str; make it with load_model"),
        (nn.ReLU(), "is a ReLU; make it with wrap_model"),
        (None, "NoneType"),
    ],
)
def test_a_bare_module_or_name_is_no_model(images, wrong, words):
    with pytest.raises(SpecError, match=words):
        ac.explain_together(wrong, ["cam"], images)
    with pytest.raises(SpecError, match=words):
        ac.make_explainer(wrong, "cam")


def masks(shape=(2, 64, 64), dtype=torch.bool):
    return torch.ones(shape, dtype=dtype)


SCORES = {
    "no map": ({"attribution": None}, "the map is a NoneType"),
    "a bare map": ({"attribution": torch.rand(2, 8, 8)}, "the map is a Tensor; an AttributionMap"),
    "fewer images": ({"images": torch.rand(1, 3, 64, 64), "masks": masks((1, 64, 64))}, r"\(2,\) targets for 1 images"),
    "small masks": (
        {"masks": masks((2, 8, 8))},
        r"masks are torch.bool \(2, 8, 8\); a torch.bool tensor \(2, 64, 64\)",
    ),
    "one mask": ({"masks": masks((1, 64, 64))}, r"masks are torch.bool \(1, 64, 64\)"),
    "masks with channels": ({"masks": masks((2, 1, 64, 64))}, "masks are"),
    "masks of 0 and 255": ({"masks": masks(dtype=torch.uint8) * 255}, "masks are torch.uint8"),
    "soft masks": ({"masks": masks(dtype=torch.float32)}, "masks are torch.float32"),
    "masks in an array": ({"masks": np.ones((2, 64, 64), bool)}, "masks are ndarray"),
    "no masks": ({"masks": None}, "needs masks="),
    "unknown metric": ({"metrics": ["energy"]}, "unknown metric 'energy'"),
    "metric nothing": ({"metrics": [None]}, "None is neither"),
    "a metric of two maps": ({"metrics": ["ssim"]}, "compares two maps"),
    "unknown protocol": ({"protocol": "rice"}, "unknown protocol 'rice'; did you mean rise"),
    "protocol nothing": ({"protocol": None}, "protocol None is not a name; give one of rise"),
    "protocol that is missing": ({"protocol": "no.toml"}, "protocol no.toml cannot be read"),
}


@pytest.mark.parametrize("kind", SCORES)
def test_what_cannot_be_scored_is_refused(model, images, kind):
    changed, words = SCORES[kind]
    right = {
        "images": images,
        "attribution": ac.make_explainer(model, "cam").explain(images),
        "metrics": ["energy_inside"],
        "masks": masks(),
    }
    assert [record.status for record in ac.score(model, **right)] == ["ok", "ok"]
    with pytest.raises(AttnCompareError, match=words):
        ac.score(model, **right | changed)


def test_a_map_is_not_scored_under_the_name_of_another_model(model, images):
    attribution = ac.make_explainer(model, "cam").explain(images)
    with pytest.raises(SpecError, match="the map is of demo/cnn; demo/vit cannot score it"):
        ac.score(ac.load_model("demo/vit"), images, attribution, metrics=["sparseness"])


def test_a_map_that_is_not_finite_is_refused(model, images):
    attribution = ac.AttributionMap(torch.full((2, 8, 8), torch.nan), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(SpecError, match="map of image 0 has values that are not finite"):
        ac.score(model, images, attribution)
    with pytest.raises(SpecError, match="not finite"):
        ac.compare_maps(attribution, attribution)
    with pytest.raises(SpecError, match="two AttributionMaps"):
        ac.compare_maps(attribution, None)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["saliency", "grad_cam", "integrated_gradients", "guided_backprop"])
def test_a_call_without_gradients_has_the_same_map(model, images, mode, method):
    options = {"n_steps": 2} if method == "integrated_gradients" else {}
    explainer = ac.make_explainer(model, method, **options)
    expected = explainer.explain(images)
    with mode():
        chosen = expected.target.clone()  # tensors made in here
        found = explainer.explain(images.clone()).values
        told = explainer.explain(images.clone(), chosen).values
        again = torch.is_grad_enabled()
    torch.testing.assert_close(found, expected.values)
    torch.testing.assert_close(told, expected.values)
    assert again is False and torch.is_grad_enabled()


def test_threads_on_one_model_have_the_maps_of_one(model, images):
    requests = ["saliency", "cam", ("integrated_gradients", {"n_steps": 2})]
    expected, found = ac.explain_together(model, requests, images), []
    workers = [
        threading.Thread(target=lambda: found.append(ac.explain_together(model, requests, images))) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3
    for maps in found:
        for name, one in maps.items():
            torch.testing.assert_close(one.values, expected[name].values)
