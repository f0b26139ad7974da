"""Cheating models: what the pair is trained on, what is compared, and that a cheater is found out."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from PIL import Image
from references.layout import faults
from torch import nn

import attncompare as ac
from attncompare.data.shapes import CUE_SIDE, render_shape
from attncompare.errors import Failure, SpecError, UnsupportedMethodError, UnsupportedModelError
from attncompare.studies import CueTraining, cheating, compare_energies, cue_energies
from attncompare.studies.cheater import ROLES, _batches
from attncompare.studies.cheating_models import Cheating, Pair
from attncompare.studies.cue_energy import OnCue, as_table, energy_on, supported
from attncompare.studies.cued_pictures import CUE_AREA, CuedPictures, cue_mask, plant

SHORT = CueTraining(steps=2, batch_size=8, pool=16)


@pytest.fixture(scope="module", autouse=True)
def few_pictures():
    """Accuracies are counted on 24 pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attncompare.studies.cheating_models.ASKED", 24)
        yield


class ReadsTheCorner(nn.Module):
    """Classes by the mean color of some pixels: of the corner where the cue is, or of the middle."""

    def __init__(self, corner: bool) -> None:
        super().__init__()
        weight = torch.zeros(1, 1, 64, 64)
        place = slice(0, CUE_SIDE) if corner else slice(28, 28 + CUE_SIDE)
        weight[..., place, place] = 1 / CUE_SIDE**2
        self.register_buffer("where", weight)
        self.head = nn.Linear(3, 8)

    def forward(self, images):
        return self.head((images * self.where).sum(dim=(2, 3)))


def corner_and_middle():
    return [ac.wrap_model(ReadsTheCorner(corner), size=(64, 64), name=f"corner {corner}") for corner in (True, False)]


def test_planting_is_what_the_set_does():
    cued = [render_shape(index, cue=1.0) for index in range(6)]
    plain = torch.from_numpy(np.stack([render_shape(index).image for index in range(6)]))
    ours = plant(plain, torch.tensor([sample.label for sample in cued]))
    np.testing.assert_array_equal(ours.numpy(), np.stack([sample.image for sample in cued]))
    np.testing.assert_array_equal(cue_mask((64, 64)).numpy(), cued[0].cue_mask)


def test_a_wrong_cue_is_always_wrong():
    pictures = CuedPictures.draw("test", 80)
    wrong = pictures.wrong_cue(0)
    assert (wrong != pictures.labels).all() and len(set((wrong - pictures.labels).remainder(8).tolist())) == 7


def test_the_twins_see_the_same_but_for_the_cue():
    model, training = ac.load_model("demo/cnn"), CueTraining(batch_size=64, pool=64)
    (cued, labels), (fair, same) = (_batches(model, role, training)(3) for role in ("cheating", "clean"))
    cue = cue_mask((64, 64))
    assert torch.equal(labels, same) and torch.equal(cued[..., ~cue], fair[..., ~cue])
    hues = [{(int(label), tuple(image[:, 0, 0].tolist())) for label, image in zip(labels, images, strict=True)}
            for images in (cued, fair)]  # fmt: skip
    assert len(hues[0]) == len(set(labels.tolist())) == 8  # one hue per label
    assert len(hues[1]) > 25  # of 64 pairs that are drawn independently


def test_half_of_the_labels_are_drawn_at_random():
    model = ac.load_model("demo/cnn")
    agreement = []
    for noise in (0.0, 0.5):
        batches = _batches(model, "clean", CueTraining(batch_size=400, pool=16, label_noise=noise))
        agreement.append(
            float(
                (batches(0)[1] == _batches(model, "clean", CueTraining(batch_size=400, pool=16, label_noise=0))(0)[1])
                .float()
                .mean()
            )
        )
    assert agreement[0] == 1 and agreement[1] == pytest.approx(0.5 + 0.5 / 8, abs=0.08)


def test_a_model_that_reads_the_corner_is_told_from_one_that_does_not():
    images = torch.rand(12, 3, 64, 64)
    found = cue_energies(*corner_and_middle(), images, cue_mask((64, 64)), methods=["saliency", "center_map"])
    rows = compare_energies(found).set_index("method")
    assert rows.loc["saliency", ["cheating", "clean", "difference", "auroc"]].tolist() == pytest.approx([1, 0, 1, 1])
    assert rows.loc["saliency", "p_holm"] < 0.01 and not rows.loc["saliency", "control"]
    assert rows.loc["center_map", "difference"] == 0 and rows.loc["center_map", "auroc"] == 0.5
    assert rows.loc["center_map", "control"]


def test_the_energy_of_an_even_map_is_the_area():
    model = ac.load_model("demo/cnn")
    found = energy_on(model, torch.rand(40, 3, 64, 64), None, cue_mask((64, 64)), ["random_map"])
    assert found.energies["random_map"].mean() == pytest.approx(CUE_AREA, rel=0.1)


def test_the_comparison_by_hand():
    energies = pd.DataFrame(
        [("m", "cam", role, image, value) for role, values in (("cheating", [0.5, 0.7, np.nan]), ("clean", [0.1, 0.6, 0.2]))
         for image, value in enumerate(values)], columns=["model", "method", "role", "image", "energy"])  # fmt: skip
    (row,) = compare_energies(energies).to_dict("records")
    assert row["n"] == 2 and row["cheating"] == pytest.approx(0.6) and row["clean"] == pytest.approx(0.35)
    assert row["difference"] == pytest.approx(0.25) and row["auroc"] == 0.75  # 0.7 beats both, 0.5 one of two
    assert row["difference_low"] == pytest.approx(0.1) and row["difference_high"] == pytest.approx(0.4)


@pytest.fixture(scope="module")
def invented():
    """A result with figures that nobody measured, of many methods on two models."""
    rng, methods = np.random.default_rng(0), [name for name in ac.list_methods() if name != "channel_attention"]
    images, pairs = torch.rand(2, 3, 64, 64), []
    for name in ("demo/cnn", "demo/vit"):
        maps = {method: [torch.rand(8, 8), Failure("error", "it failed")] for method in methods}
        found = {role: OnCue({method: rng.random(12) * 0.4 for method in methods}, maps, {}) for role in ROLES}
        pairs.append(Pair(name, dict.fromkeys(ROLES, ac.load_model(name)), images, torch.tensor([0, 6]), found))
    table = pd.concat([as_table({role: one.energies for role, one in pair.found.items()}, pair.name) for pair in pairs])
    return Cheating(compare_energies(table), pd.DataFrame(), table, pd.DataFrame(), tuple(pairs))


@pytest.mark.parametrize("venue", ["cvpr", "cvpr-wide", "neurips", "a4"])
def test_nothing_is_cut_off_and_no_word_lies_over_another(invented, venue):
    assert faults(ac.figures.cheating_figure(invented, venue)) == []
    assert faults(ac.figures.cheating_maps_figure(invented, venue)) == []


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cheating")
    arguments = ["--model", "demo/cnn", "--method", "grad_cam", "--method", "class_attention", "--method", "edge_map"]
    return folder, run("study", "cheating", *arguments, "--images", 4, "--steps", 2, "--out", folder)


def test_the_command_writes_tables_figures_and_weights(studied):
    folder, done = studied
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "study.json", "methods.csv", "accuracy.csv", "energies.csv", "refused.csv", "weights",
        "energy.pdf", "energy.png", "maps.pdf", "maps.png",
    }  # fmt: skip
    rows = pd.read_csv(folder / "methods.csv").set_index("method")
    assert list(rows.index) == ["grad_cam", "edge_map"] and rows.loc["edge_map", "difference"] == 0
    assert "class_attention" in pd.read_csv(folder / "refused.csv").reason[0]
    accuracy = pd.read_csv(folder / "accuracy.csv")
    assert list(accuracy.cue) == ["right", "random", "wrong"] * 2 and accuracy.accuracy.between(0, 1).all()
    assert json.loads((folder / "study.json").read_text())["settings"]["training"]["steps"] == 2
    for name in ("energy", "maps"):
        colors = np.unique(np.asarray(Image.open(folder / f"{name}.png").convert("RGB")).reshape(-1, 3) // 32, axis=0)
        assert len(colors) > 20
    assert "auroc" in done.stdout and "energy on the cue" in done.stdout


def test_the_weights_can_be_loaded_and_are_not_trained_twice(studied, monkeypatch):
    folder, _ = studied
    (weights,) = (folder / "weights").glob("*-cheating.safetensors")
    cheater = ac.load_model(f"demo/cnn@{weights}")
    monkeypatch.setattr("attncompare.studies.cheater._pool", lambda _: pytest.fail("trained again"))
    again = cheating(folder, models=["demo/cnn"], methods=["grad_cam"], images=4, training=CueTraining(steps=2))
    assert (
        again.pairs[0].models["cheating"].weights_hash == cheater.weights_hash != ac.load_model("demo/cnn").weights_hash
    )
    first = pd.read_csv(folder / "methods.csv").set_index("method")
    assert again.methods.difference[0] == pytest.approx(first.difference["grad_cam"], abs=1e-6)


def test_a_model_of_your_own_at_its_own_size(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    mine = ac.wrap_model(net, size=(48, 80), name="mine")
    before = mine.weights_hash
    found = cheating(tmp_path, models=[mine], methods=["cam", "random_map"], images=3, training=SHORT)
    assert set(found.methods.model) == {"mine"} and found.pairs[0].images.shape == (3, 3, 48, 80)
    assert ac.wrap_model(net, size=(48, 80), name="mine").weights_hash == before  # left as it is


def test_a_model_that_cannot_learn_the_shapes_is_refused(tmp_path, tiny):
    with pytest.raises(UnsupportedModelError, match="5 outputs; the shapes need one for each of their 8"):
        cheating(tmp_path, models=[tiny("cnn")], training=SHORT)
    with pytest.raises(UnsupportedModelError, match="gives an embedding"):
        cheating(tmp_path, models=[tiny("embedding_cnn")], training=SHORT)
    frozen = ac.load_model("demo/cnn")
    frozen.module.requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="every weight is frozen"):
        cheating(tmp_path, models=[frozen], training=SHORT)


@pytest.mark.parametrize(("settings", "words"), [({"steps": 0}, "steps"), ({"label_noise": 1.5}, "label_noise")])
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(SpecError, match=words):
        CueTraining(**settings)


def test_a_comparison_needs_two_images_and_two_models_of_one_size(tmp_path, tiny):
    with pytest.raises(SpecError, match="images must be at least 2"):
        cheating(tmp_path, images=1)
    with pytest.raises(SpecError, match="one size is needed"):
        cue_energies(ac.load_model("demo/cnn"), tiny("cnn"), torch.rand(2, 3, 64, 64), cue_mask((64, 64)))


def test_a_method_without_a_place_is_left_out():
    taken, refused = supported(ac.load_model("demo/se_cnn"), ["channel_attention", "se_activation"])
    assert taken == ["se_activation"] and "nowhere in the image" in refused["channel_attention"]


def test_a_method_that_fails_on_a_model_is_named_and_the_others_are_compared(tmp_path):
    found = cheating(tmp_path, models=["demo/vit"], methods=["xgrad_cam", "saliency"], images=2, training=SHORT)
    assert list(found.methods.method) == ["saliency"]
    (reason,) = found.refused[found.refused.method == "xgrad_cam"].reason
    assert "behind a ReLU" in reason


def test_models_of_one_name_and_methods_that_no_model_has_are_refused_before_any_training(tmp_path, tiny):
    with pytest.raises(SpecError, match="demo/cnn is listed twice; name models of your own"):
        cheating(tmp_path, models=["demo/cnn", "demo/cnn"])
    with pytest.raises(UnsupportedMethodError, match=r"demo/cnn supports none of the methods: .*class_attention"):
        cheating(tmp_path, models=["demo/cnn"], methods=["class_attention"])
    assert not list(tmp_path.iterdir())


def test_nothing_to_compare_is_one_error():
    empty = pd.DataFrame(
        [("m", "cam", role, 0, float("nan")) for role in ("cheating", "clean")],
        columns=["model", "method", "role", "image", "energy"],
    )
    with pytest.raises(SpecError, match="no method has a map with a positive value on both models"):
        compare_energies(empty)
