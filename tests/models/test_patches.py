"""SigLIP 2's models of flexible shape: what ours makes of an image is what the library makes of its processor's patches."""

import copy

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from references.dual_encoders import TEXT, write_tokenizer

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.errors import UnsupportedModelError
from attncompare.models.sources.patches import to_images, to_patches
from attncompare.signals._base import request

SIDE, PATCH = 32, 8
VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
VISION |= {"patch_size": PATCH, "num_patches": 16}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def write(folder, kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = getattr(transformers, kind)(config).eval()
        for value in model.parameters():
            value.data += 0.1 * torch.randn(value.shape)
    model.save_pretrained(folder)
    transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=16).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    theirs = write(folder, "Siglip2ForImageClassification", transformers.Siglip2Config(vision_config=VISION, **LABELS))
    return theirs, ac.load_model(f"hf/{folder}"), folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    text = TEXT | {"projection_size": 32}
    theirs = write(folder, "Siglip2Model", transformers.Siglip2Config(vision_config=VISION, text_config=text))
    write_tokenizer(folder)
    return theirs, ac.load_model(f"hf/{folder}")


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def patches_of(folder, pixels):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor(images=Image.fromarray(pixels), return_tensors="pt")


def test_patches_are_those_of_the_processor_and_go_back(classifier):
    _, model, folder = classifier
    made = patches_of(folder, picture())
    images = ac.load_images(picture(), model)
    mine = to_patches((images - 0.5) / 0.5, PATCH)
    torch.testing.assert_close(mine, made["pixel_values"], atol=1e-5, rtol=0)
    uneven = torch.rand(2, 3, 24, 40)
    assert torch.equal(to_images(to_patches(uneven, PATCH), (3, 5), PATCH), uneven)


def test_logits_are_the_librarys_for_a_square_picture(classifier):
    theirs, model, folder = classifier
    assert model.size == (SIDE, SIDE) and model.class_names == ("a", "b", "c")
    assert "all are squashed to one size" in model.source.note
    with torch.no_grad():
        expected = theirs(**patches_of(folder, picture())).logits
        found = model.forward(ac.load_images(picture(), model))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_its_maps_lie_on_the_grid_of_patches(classifier):
    _, model, _ = classifier
    images = ac.load_images([picture(), picture(1)], model)
    maps = ac.explain_together(model, ["grad_cam", "attention_rollout", "gradient_rollout", "saliency"], images)
    assert {name: tuple(found.values.shape[1:]) for name, found in maps.items()} == {
        "grad_cam": (4, 4), "attention_rollout": (4, 4), "gradient_rollout": (4, 4), "saliency": (SIDE, SIDE),
    }  # fmt: skip
    assert all(found.values[0].std() > 0 for found in maps.values())


def test_attention_is_what_the_library_returns(classifier, tmp_path):
    theirs, model, folder = classifier
    eager = type(theirs).from_pretrained(folder, attn_implementation="eager").eval()
    images = ac.load_images(picture(), model)
    with torch.no_grad():
        expected = eager(**patches_of(folder, picture()), output_attentions=True).attentions
    need = request("attention")
    found = record(model, images, [need]).signals[need]
    assert len(found) == len(expected) == 3
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[..., -16:, -16:], right, atol=1e-5, rtol=0)


def test_a_pair_gives_the_librarys_embeddings_and_takes_text_targets(pair):
    theirs, model = pair
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    shapes = torch.tensor([[4, 4]] * 2)
    with torch.no_grad():
        expected = theirs.get_image_features(
            pixel_values=to_patches((images - 0.5) / 0.5, PATCH),
            pixel_attention_mask=torch.ones(2, 16),
            spatial_shapes=shapes,
        )
        found = model.forward(images)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    cat, dog = (
        ac.explain_together(model, ["grad_cam"], images, target=f"text:a photo of a {x}") for x in ("cat", "dog")
    )
    assert not torch.equal(cat["grad_cam"].values, dog["grad_cam"].values)
    assert not any("text" in name for name, _ in model.module.named_modules())


def test_a_processor_of_other_patches_is_refused(tmp_path):
    write(tmp_path, "Siglip2ForImageClassification", transformers.Siglip2Config(vision_config=VISION, **LABELS))
    transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="cuts patches of 16 pixels, the model reads patches of 8"):
        ac.load_model(f"hf/{tmp_path}")


def test_a_copy_runs_its_own_weights(pair):
    _, model = pair
    images = torch.rand(1, 3, SIDE, SIDE)
    copied = copy.deepcopy(model.module)
    with torch.no_grad():
        for value in copied.parameters():
            value.zero_()
        assert copied(images).abs().max() == 0
        assert model.module(images).abs().max() > 0
