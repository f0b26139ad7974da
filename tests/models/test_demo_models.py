"""The shipped models: what their cards promise, measured again."""

import hashlib

import pytest
import torch

import attncompare as ac
from attncompare.data.shapes import CLASS_NAMES as SHAPES
from attncompare.data.shapes import render_shape
from attncompare.models.sources.demo import CLASS_NAMES, WEIGHTS, model_card

COUNT = 500
LEAST = {"cnn": 0.97, "se_cnn": 0.97, "vit": 0.95}


@pytest.fixture(scope="module")
def test_images():
    """(images, labels) of the first images of the test split."""
    samples = [render_shape(index, "test") for index in range(COUNT)]
    images = torch.stack([torch.from_numpy(sample.image).permute(2, 0, 1).float() / 255 for sample in samples])
    return images, torch.tensor([sample.label for sample in samples])


@pytest.mark.parametrize("name", LEAST)
def test_a_shipped_model_scores_what_its_card_says(test_images, name):
    model = ac.load_model(f"demo/{name}")
    images, labels = test_images
    with torch.no_grad():
        found = torch.cat([model.forward(part).argmax(dim=1) for part in images.split(100)])
    accuracy = float((found == labels).float().mean())
    assert accuracy >= LEAST[name]
    assert accuracy == pytest.approx(model_card(name)["test_accuracy"], abs=0.01)


@pytest.mark.parametrize("name", LEAST)
def test_the_card_belongs_to_the_weights(name):
    card, model = model_card(name), ac.load_model(f"demo/{name}")
    assert card["model"] == f"demo/{name}"
    assert card["sha256"] == hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()
    assert card["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
    assert str(card["test_accuracy"]) in model.describe()["note"]


def test_all_weights_together_stay_small():
    files = sorted(path.name for path in WEIGHTS.iterdir() if not path.name.endswith(".json"))
    assert files == ["cnn.safetensors", "se_cnn.safetensors", "vit.safetensors"]
    assert sum((WEIGHTS / file).stat().st_size for file in files) <= 12_000_000


def test_the_outputs_are_named_after_the_shapes():
    assert CLASS_NAMES == SHAPES
    assert [ac.load_model("demo/vit").class_name(index) for index in range(8)] == list(SHAPES)


@pytest.mark.parametrize(
    ("name", "supplied", "missing"),
    [
        ("cnn", {"features", "classifier_weights"}, {"attention", "channel_attention"}),
        ("se_cnn", {"features", "classifier_weights", "channel_attention"}, {"attention"}),
        ("vit", {"features", "attention", "class_attention"}, {"classifier_weights", "channel_attention"}),
    ],
)
def test_between_them_the_models_supply_every_kind_of_signal(name, supplied, missing):
    found = ac.load_model(f"demo/{name}").supplies
    assert supplied <= found
    assert not missing & found
