"""The maps of a model's first choices, and the targets "rank:N" that they stand on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage
import torch
from command_line import run
from references.layout import drawn_texts, faults

import attncompare as ac
from attncompare.errors import SpecError, UnsupportedMethodError, UnsupportedModelError
from attncompare.reporting.studies.first_choices import top_classes_figure

CAT = Path(skimage.__file__).parent / "data" / "chelsea.png"
LITE = "offline/efficientnet_lite0"


def test_maps_are_the_weighted_features_of_each_choice(tiny, pictures):
    model = tiny("cnn")  # [7] flatten, [8] linear on the mean of [5]
    images = pictures(model, 3)
    found = ac.studies.top_classes(model, images, "cam", k=4)
    seen = []
    handle = model.module[5].register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    with torch.no_grad():
        logits = model.forward(images)
    handle.remove()
    for row in range(3):
        order = sorted(range(5), key=lambda c: -float(logits[row, c]))[:4]
        assert found.target[row].tolist() == order
        shares = torch.exp(logits[row].double()) / torch.exp(logits[row].double()).sum()
        np.testing.assert_allclose(found.probability[row], shares[order], rtol=1e-5)
        for rank, target in enumerate(order):
            expected = sum(model.module[8].weight[target, c] * seen[0][row, c] for c in range(12))
            np.testing.assert_allclose(found.maps[row, rank], expected.detach(), atol=1e-5)


@pytest.mark.parametrize("method", ["cam", "layer_cam", "saliency"])
def test_all_choices_take_one_forward_pass(fresh, pictures, method):
    model, passed = fresh("cnn"), []
    image = pictures(model, 1)
    ac.studies.top_classes(model, image, method, k=5)  # the first recording of a kind is checked by one more pass
    model.module.register_forward_hook(lambda *given: passed.append(1))
    ac.studies.top_classes(model, image, method, k=5)
    assert len(passed) == 1


def test_more_classes_than_there_are_is_all_of_them(tiny, pictures):
    assert ac.studies.top_classes(tiny("cnn"), pictures(tiny("cnn"), 1), k=99).target.shape == (1, 5)


@pytest.mark.parametrize("method", ["grad_cam", ("occlusion", {"window": 0.5}), "gradient_rollout"])
def test_other_methods_that_know_the_class(tiny, pictures, method):
    model = tiny("vit")
    image = pictures(model, 1)
    found = ac.studies.top_classes(model, image, method, k=3)
    for rank, target in enumerate(found.target[0]):
        alone = ac.explain_together(model, [method], image, int(target))[found.method].values[0]
        np.testing.assert_allclose(found.maps[0, rank], alone, atol=2e-5 * float(alone.abs().max()) + 5e-7)


@pytest.mark.parametrize(
    ("name", "method", "error", "message"),
    [
        (
            "vit",
            "cam",
            UnsupportedMethodError,
            r"cam needs classifier_weights: its classifier reads a class token, not",
        ),
        (
            "vit",
            "class_attention",
            UnsupportedMethodError,
            "cannot tell .* apart: its map does not depend on the class",
        ),
        ("se_cnn", "channel_attention", UnsupportedMethodError, "apart: it has no map on the image"),
        ("embedding_cnn", "grad_cam", UnsupportedModelError, "has no classifier, so there are no first choices"),
    ],
)
def test_what_has_no_choices_to_show_is_refused(tiny, pictures, name, method, error, message):
    with pytest.raises(error, match=message):
        ac.studies.top_classes(tiny(name), pictures(tiny(name), 1), method)


def test_no_class_at_all_is_refused(tiny, pictures):
    with pytest.raises(SpecError, match="k must be at least 1, not 0"):
        ac.studies.top_classes(tiny("cnn"), pictures(tiny("cnn"), 1), k=0)


def test_a_rank_is_a_target_of_each_image_of_its_own(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model, 4)
    with torch.no_grad():
        order = model.forward(images).argsort(dim=1, descending=True)
    for rank in (1, 2, 5):
        shown = ac.explain_together(model, ["cam"], images, f"rank:{rank}")["cam"]
        assert shown.target.tolist() == order[:, rank - 1].tolist()
    first, plain = (ac.explain_together(model, ["cam"], images, target)["cam"] for target in ("rank:1", None))
    assert torch.equal(first.values, plain.values)
    mixed = ac.explain_together(model, ["cam"], images, ["rank:2", "rank:1", "rank:3", "rank:1"])["cam"]
    assert mixed.target.tolist() == [int(order[row, rank]) for row, rank in enumerate((1, 0, 2, 0))]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("rank:0", "target 'rank:0': a rank is a number from 1 to 5"),
        ("rank:6", "target 'rank:6': a rank is a number from 1 to 5"),
        ("rank:first", "target 'rank:first': a rank is a number from 1 to 5"),
        ("rank:", "target 'rank:' is empty; write the rank behind the colon"),
        (["rank:1", "class:a"], "mix classes and ranks; explain them in two calls"),
    ],
)
def test_ranks_that_no_class_has_are_refused(tiny, pictures, target, message):
    with pytest.raises(SpecError, match=message):
        ac.explain_together(tiny("cnn"), ["cam"], pictures(tiny("cnn"), 2), target)


def test_a_map_knows_the_probability_of_its_target(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model, 2)
    with torch.no_grad():
        shares = model.forward(images).softmax(dim=1)
    shown = ac.explain_together(model, ["cam", "saliency"], images, [3, 0])
    for one in shown.values():
        torch.testing.assert_close(one.probability, torch.stack([shares[0, 3], shares[1, 0]]))
    alone = ac.explain_together(model, ["edge_map"], images, torch.tensor([3, 0]))["edge_map"]
    assert alone.probability is None and alone.passes_forward == 0


def test_the_cat(tmp_path):
    found = run("explain", CAT, "-m", LITE, "--method", "cam", "--top", 5, "--out", tmp_path)
    assert found.returncode == 0, found.stderr
    table = pd.read_csv(tmp_path / "top-classes.csv")
    assert table.name.tolist()[:3] == ["tiger cat", "Egyptian cat", "tabby, tabby cat"]
    assert table.probability.round(2).tolist()[:3] == [0.39, 0.36, 0.17]
    assert "Egyptian cat" in found.stdout and "0.356" in found.stdout
    folder = tmp_path / "chelsea-png"
    assert {path.suffix for path in folder.iterdir()} == {".png", ".pdf", ".npz"}
    assert all(path.name.startswith("top-cam-offline-efficientnet-lite0-") for path in folder.iterdir())
    with np.load(next(folder.glob("*.npz"))) as saved:
        assert saved["maps"].shape == (5, 7, 7) and saved["target"].tolist() == table["class"].tolist()
        assert saved["names"].tolist() == table.name.tolist()


@pytest.mark.parametrize("venue", ["cvpr", "a4"])
def test_the_figure_has_names_and_probabilities(venue):
    found = ac.studies.top_classes(ac.load_model("demo/cnn"), ac.open_dataset("shapes", 1), k=8)
    figure = top_classes_figure(found, venue=venue)
    assert faults(figure) == []
    words = " ".join(" ".join(text for text, _ in drawn_texts(figure)).split())
    lines = [text for text, _ in drawn_texts(figure)]
    for rank, name in enumerate(found.names[0]):
        assert any(line.startswith(f"{rank + 1}. {name}") for line in lines)
        assert f"({found.probability[0, rank]:.3f})" in words
    assert "true: tee" in words and sum(bool(axes.images) for axes in figure.axes) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "demo/vit", "--top", "3"], "error: cam needs classifier_weights: its classifier reads a class token"),
        (["-m", "demo/cnn", "--top", "3", "--method", "gradcam"], "unknown method 'gradcam'; did you mean grad_cam"),
        (["-m", "demo/cnn", "--top", "3", "--option", "rise.n_masks=4"], "add --method rise"),
        (["-m", "demo/cnn", "--top", "3", "--target", "2"], "three questions; ask one of them"),
        (["-m", "demo/cnn", "--top", "0"], "k must be at least 1, not 0"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, words, message):
    found = run("explain", CAT, *words, "--out", tmp_path / "out")
    assert found.returncode == 1 and message in found.stderr
    assert found.stderr.strip().count("\n") == 0 and not (tmp_path / "out").exists()


def test_the_command_keeps_hostile_names_inside_its_folder(tmp_path):
    odd = tmp_path / "..=cmd|' <b>.png"
    odd.write_bytes(CAT.read_bytes())
    found = run("explain", odd, "--top", 2, "--method", "grad_cam", "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert len(folders) == 1 and all(c.isalnum() or c == "-" for c in folders.pop())
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 2  # of both demo models
