"""Pairs of an image and a text encoder: what is seen of a prompt. Written by save_pretrained, loaded without a network."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from references.dual_encoders import PAIRS, PIXELS, VISION, write
from torch import nn

import attncompare as ac
from attncompare.capture.target import TargetScore
from attncompare.cli import app
from attncompare.errors import SpecError

CAT, DOG = "text:a photo of a cat", "text:a photo of a dog"
GRADIENTS = ["saliency", "hires_cam", "gradient_rollout", "integrated_gradients"]
TARGETLESS = ["class_attention", "attention_rollout", "activation"]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    """(the library's model, its tokenizer, ours)."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs, tokenizer = write(folder, request.param)
    return theirs, tokenizer, ac.load_model(f"hf/{folder}")


def normalized(images):
    mean, std = (torch.tensor(PIXELS[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    return (images - mean) / std


def ids(tokenizer, targets):
    return tokenizer([t.removeprefix("text:") for t in targets], padding="max_length", return_tensors="pt").input_ids


def test_the_score_is_the_librarys_own_logit_before_its_scale(pair, pictures):
    theirs, tokenizer, ours = pair
    images = pictures(ours)
    with torch.no_grad():
        out = theirs(input_ids=ids(tokenizer, [CAT, DOG]), pixel_values=normalized(images))
        bias = getattr(theirs, "logit_bias", torch.zeros(1))
        expected = (out.logits_per_image - bias) / theirs.logit_scale.exp()
        raw = ours.forward(images)
        scored = [TargetScore.of(ours, raw, target) for target in (CAT, DOG)]
        actual = torch.stack([one.score(raw) for one in scored], dim=1)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert (expected[:, 0] - expected[:, 1]).abs().min() > 1e-3
    torch.testing.assert_close(scored[0].probability(raw, torch.arange(2)), expected[:, 0], atol=1e-5, rtol=1e-4)


def test_the_embedding_is_the_librarys_own(pair, pictures):
    theirs, _, ours = pair
    images = pictures(ours)
    with torch.no_grad():
        expected = theirs.get_image_features(pixel_values=normalized(images)).pooler_output
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)
    assert ours.embedding
    assert ours.describe()["text_targets"]


def test_the_text_encoder_is_no_part_of_the_module_tree(pair):
    _, _, ours = pair
    names = [name for name, _ in ours.module.named_modules()]
    assert any(name.startswith("vision_model.") for name in names)
    assert not any("text" in name for name in names)


def test_the_gradient_is_that_of_the_cosine(pair, pictures):
    theirs, tokenizer, ours = pair
    images = pictures(ours)
    plain = images.clone().requires_grad_(True)
    e = theirs.get_image_features(pixel_values=normalized(plain)).pooler_output
    t = theirs.get_text_features(ids(tokenizer, [CAT])).pooler_output
    expected = torch.autograd.grad(F.cosine_similarity(e, t).sum(), plain)[0].abs().amax(dim=1)
    actual = ac.make_explainer(ours, "saliency").explain(images, CAT).values
    torch.testing.assert_close(actual, expected, atol=1e-5 * float(expected.max()), rtol=1e-3)


@pytest.mark.parametrize("method", GRADIENTS)
def test_two_prompts_have_two_maps(pair, pictures, method):
    ours = pair[2]
    if method == "gradient_rollout" and "attention_gradients" not in ours.supplies:
        pytest.skip("this model pools its tokens by attention")
    images = pictures(ours)
    cat, dog = (ac.make_explainer(ours, method).explain(images, target).values for target in (CAT, DOG))
    assert (cat - dog).abs().max() > 0.02 * cat.abs().max()


def test_attention_knows_nothing_of_the_prompt(pair, pictures):
    ours = pair[2]
    images = pictures(ours)
    methods = [name for name in TARGETLESS if name in supported(ours)]
    cat, dog = (ac.explain_together(ours, methods, images, target) for target in (CAT, DOG))
    assert methods
    assert all(torch.equal(cat[name].values, dog[name].values) for name in methods)


def supported(model):
    from attncompare.methods._base import methods

    return [one.name for one in methods if frozenset(one.needs) <= model.supplies]


def test_every_method_takes_a_prompt(pair, pictures):
    ours = pair[2]
    options = {
        "integrated_gradients": {"n_steps": 4},
        "rise": {"n_masks": 8},
        "smooth_grad": {"n_samples": 2},
        "gradient_shap": {"n_samples": 2},
        "lime": {"n_samples": 8, "n_segments": 4},
        "kernel_shap": {"n_samples": 8, "n_segments": 4},
    }
    refused = ("xgrad_cam", "grad_cam_pp", "deep_lift")  # layers behind no ReLU, products of activations
    names = [n for n in supported(ours) if n not in refused]
    maps = ac.explain_together(ours, [(n, options.get(n, {})) for n in names], pictures(ours), CAT)
    assert all(one.prompts == (CAT, CAT) for one in maps.values())
    assert all(one.values.isfinite().all() for one in maps.values())


def test_each_image_may_have_its_own_prompt(pair, pictures):
    ours = pair[2]
    images = pictures(ours)
    maps = ac.explain_together(ours, ["saliency", "integrated_gradients"], images, [CAT, DOG])
    for name, shown in maps.items():
        assert shown.prompts == (CAT, DOG)
        for i, target in enumerate((CAT, DOG)):
            alone = ac.make_explainer(ours, name).explain(images[i : i + 1], target).values[0]
            torch.testing.assert_close(shown.values[i], alone, atol=1e-4 * float(alone.abs().max()), rtol=1e-3)


def test_a_map_is_scored_by_the_cosine_to_its_own_prompt(pair, pictures):
    ours = pair[2]
    images = pictures(ours)
    shown = ac.make_explainer(ours, "saliency").explain(images, [CAT, DOG])
    records = ac.score(ours, images, shown, metrics=["deletion"], protocol="rise-fast")
    with torch.no_grad():
        raw = ours.forward(images)
        clean = TargetScore.of(ours, raw, [CAT, DOG]).score(raw)
    assert [record.curve[0] for record in records] == pytest.approx(clean.tolist(), abs=1e-5)
    other = ac.score(
        ours, images, shown.__class__(shown.values, shown.target, prompts=(DOG, DOG)), protocol="rise-fast"
    )
    assert {record.key for record in records}.isdisjoint({record.key for record in other})


def test_without_a_prompt_the_embedding_is_compared_with_itself(pair, pictures):
    ours = pair[2]
    images = pictures(ours)
    maps = [ac.make_explainer(ours, "saliency").explain(images, target).values for target in (None, "embedding", CAT)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


def test_inference_mode_around_the_first_prompt_leaves_gradients_possible(pair, pictures):
    ours = pair[2]
    with torch.inference_mode():
        TargetScore.of(ours, ours.forward(pictures(ours)), "text:the red car")
    assert ac.make_explainer(ours, "saliency").explain(pictures(ours), "text:the red car").values.max() > 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("text:" + "cat " * 20, r"has 22 tokens; hf/.* reads 12"),
        ([CAT], "1 targets for 2 images"),
        ([CAT, DOG, CAT], "3 targets for 2 images"),
        ([CAT, 3], "has no classifier"),
        ("text:", "is empty; write the prompt"),
        ("class:cat", "has no classifier"),
        (3, "has no classifier"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(pair, pictures, target, message):
    ours = pair[2]
    with pytest.raises(SpecError, match=message):
        ac.make_explainer(ours, "saliency").explain(pictures(ours), target)


def test_a_pair_without_a_tokenizer_explains_its_embedding_only(tmp_path, pictures):
    write(tmp_path, "CLIP", tokenizer=False)
    ours = ac.load_model(f"hf/{tmp_path}")
    assert ac.make_explainer(ours, "saliency").explain(pictures(ours)).values.max() > 0
    with pytest.raises(SpecError, match=r"^hf/.* has no tokenizer beside it"):
        ac.make_explainer(ours, "saliency").explain(pictures(ours), CAT)


@pytest.mark.parametrize("name", ["vit", "embedding_vit"])
def test_a_model_without_a_text_encoder_says_so(tiny, pictures, name):
    model = tiny(name)
    with pytest.raises(SpecError, match=rf"'{CAT}': tiny/{name} has no text encoder"):
        ac.make_explainer(model, "saliency").explain(pictures(model), CAT)


def test_the_image_side_alone_keeps_its_projection(tmp_path, pictures):
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=24)
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = ac.load_model(f"hf/{tmp_path}")
    images = pictures(ours)
    with torch.no_grad():
        expected = theirs((images - 0.5) / 0.5).image_embeds
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)


class Mixer(nn.Module):
    """A CNN whose embedding is linear in its pooled features, so that CAM exists."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 6, bias=False)

    def forward(self, images):
        return self.head(self.trunk(images).mean(dim=(2, 3)))


def test_cam_of_a_prompt_is_its_cosine_place_by_place(pictures):
    text = torch.randn(6, generator=torch.Generator().manual_seed(3))
    model = ac.wrap_model(Mixer().eval(), size=(16, 16), embedding=True, encode_text=lambda prompt: text)
    images = pictures(model)
    shown = ac.make_explainer(model, "cam").explain(images, CAT).values
    with torch.no_grad():
        e = model.forward(images)
        expected = F.cosine_similarity(e, text[None]) * e.norm(dim=1)
    torch.testing.assert_close(shown.mean(dim=(1, 2)), expected, atol=1e-5, rtol=1e-4)


def test_text_of_another_length_than_the_images_is_refused(pictures):
    model = ac.wrap_model(Mixer().eval(), size=(16, 16), embedding=True, encode_text=lambda prompt: torch.ones(5))
    with pytest.raises(SpecError, match="embeds images in 6 dimensions, text in 5"):
        ac.make_explainer(model, "saliency").explain(pictures(model), CAT)


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip").mkdir()
    write(tmp_path / "clip", "CLIP")
    return f"hf/{tmp_path / 'clip'}"


def test_a_benchmark_of_a_prompt_scores_and_keys_by_it(clip, tmp_path):
    base = {"models": [clip], "methods": ["saliency", "occlusion", "random_map"], "metrics": ["deletion"]}
    base |= {"protocol": "rise-fast", "limit": 2, "timing": False, "save_maps": True, "chunk_size": 2}
    runs = [ac.run_benchmark(ac.BenchmarkSpec(**base, target=t), tmp_path / "run") for t in (CAT, DOG, CAT)]
    assert [run.computed for run in runs] == [3, 3, 0]
    records = runs[2].records()
    assert (records.status == "ok").all()
    clean = records[records.measure == "target_score"].value
    assert clean.abs().max() < 1 - 1e-3
    from attncompare.reporting.gallery import Gallery

    gallery = Gallery.open(tmp_path / "run")
    assert gallery.explained_class(clip, gallery.images[0]) == "a photo of a cat"


def test_a_prompt_for_a_classifier_stops_a_benchmark_before_it_starts(clip, tmp_path):
    spec = ac.BenchmarkSpec(models=[clip, "demo/cnn"], methods=["random_map"], limit=1, target=CAT)
    with pytest.raises(SpecError, match="demo/cnn has no text encoder"):
        ac.run_benchmark(spec, tmp_path / "run")
    assert not (tmp_path / "run" / "records").exists()


def test_explain_takes_a_prompt_on_the_command_line(clip, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "one.png")
    arguments = ["explain", str(tmp_path / "one.png"), "-m", clip, "--method", "saliency", "--target", CAT]
    app([*arguments, "--out", str(tmp_path / "out")], standalone_mode=False)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["spec"]["target"] == CAT
