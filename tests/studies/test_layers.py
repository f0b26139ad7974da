"""Layers of one model: their maps from one pass, the numbers that compare them, the figure and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage
import torch
from command_line import run
from PIL import Image
from references.layout import drawn_texts, faults
from torch import nn

import attncompare as ac
from attncompare.errors import CaptureError, ImageError, SpecError, UnknownNameError
from attncompare.reporting.studies.layers import layers_figure
from attncompare.studies.layer_measures import MEASURES, measure_maps
from attncompare.studies.layer_responses import BATCH, default_layers

CAT = Path(skimage.__file__).parent / "data" / "chelsea.png"


class ThreeConvs(nn.Module):
    """A CNN as a user writes it: conv1, conv2, conv3, their ReLUs in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv3 = nn.Conv2d(12, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        x = self.conv1(images).relu()
        x = self.conv2(nn.functional.max_pool2d(x, 2)).relu()
        x = self.conv3(nn.functional.max_pool2d(x, 2)).relu()
        return self.fc(x.mean(dim=(2, 3)))


@pytest.fixture
def mine():
    torch.manual_seed(3)
    names = ("ant", "bee", "cat", "dog", "elk")
    return ac.wrap_model(ThreeConvs().eval(), size=(32, 32), name="mine", class_names=names)


def hooked(model, images, paths):
    """What the layers return, by plain hooks."""
    seen = {}
    handles = [
        model.module.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
        for path in paths
    ]
    with torch.no_grad():
        logits = model.forward(images)
    for handle in handles:
        handle.remove()
    return logits, seen


def test_maps_are_means_and_strongest_channels_of_what_the_layers_return(mine, pictures):
    images, paths = pictures(mine, 2), ["conv1", "conv2", "conv3"]
    study = ac.studies.layers(mine, images, paths, 3)
    logits, seen = hooked(mine, images, paths)
    assert [one.layer for one in study.layers] == paths
    assert [(one.grid, one.channels) for one in study.layers] == [((32, 32), 8), ((16, 16), 12), ((8, 8), 16)]
    for one in study.layers:
        output = seen[one.layer]
        np.testing.assert_allclose(one.mean, output.mean(dim=1), atol=1e-6)
        np.testing.assert_allclose(one.magnitude, output.abs().mean(dim=1), atol=1e-6)
        for row in range(2):
            order = sorted(range(one.channels), key=lambda c: -float(output[row, c].mean()))[:3]
            assert one.index[row].tolist() == order
            np.testing.assert_allclose(one.strongest[row], output[row, order], atol=1e-6)
    chosen = logits.softmax(1).max(dim=1)
    assert study.predicted == tuple(["ant", "bee", "cat", "dog", "elk"][i] for i in chosen.indices)
    np.testing.assert_allclose(study.probability, chosen.values, atol=1e-6)


def test_the_channel_mean_is_the_map_of_activation(mine, pictures):
    images = pictures(mine, 2)
    for one in ac.studies.layers(mine, images, ["conv1", "conv3"]).layers:
        shown = ac.make_explainer(mine, "activation", layer=one.layer).explain(images)
        np.testing.assert_allclose(one.mean, shown.values, atol=1e-6)


@pytest.mark.parametrize("paths", [["conv1"], ["conv1", "conv2", "conv3"]])
def test_all_layers_take_one_forward_pass(mine, pictures, paths):
    images, passed = pictures(mine, 2), []
    ac.studies.layers(mine, images, paths)  # the first recording of a kind is checked by one more pass
    mine.module.register_forward_hook(lambda *given: passed.append(1))
    ac.studies.layers(mine, images, paths)
    assert len(passed) == 1


def test_batches_give_what_single_images_give(mine, pictures):
    images = pictures(mine, BATCH + 2)
    together = ac.studies.layers(mine, images, "conv2")
    alone = [ac.studies.layers(mine, one[None], "conv2") for one in images]
    for name in ("mean", "magnitude", "strongest", "index"):
        expected = np.concatenate([getattr(one.layers[0], name) for one in alone])
        np.testing.assert_allclose(getattr(together.layers[0], name), expected, atol=1e-6)
    assert together.predicted == tuple(one.predicted[0] for one in alone)


def test_without_layers_one_of_each_stage_or_every_block():
    assert default_layers(ac.load_model("demo/se_cnn@random")) == ("0.3", "0", "1", "2")
    vit = ac.load_model("demo/vit@random")
    study = ac.studies.layers(vit, ac.open_dataset("shapes", 1))
    assert [one.layer for one in study.layers] == [f"blocks.{number}" for number in range(6)]
    assert {one.grid for one in study.layers} == {(8, 8)}


def test_every_tiny_model_has_default_layers(each_tiny, pictures):
    study = ac.studies.layers(each_tiny, pictures(each_tiny), channels=2)
    assert len(study.table()) == 2 * len(study.layers) > 0
    assert all(np.isfinite(one.mean).all() and one.index.shape == (2, 2) for one in study.layers)


def test_measures_by_hand():
    """[[4, 2], [1, 1]] less its minimum is 3, 1, 0, 0, in shares 3/4, 1/4, 0, 0; the mask is its first pixel."""
    maps, mask = torch.tensor([[[4.0, 2.0], [1.0, 1.0]]]), torch.tensor([[[True, False], [False, False]]])
    image = torch.rand(1, 3, 2, 2)
    found = {name: float(values) for name, values in measure_maps(maps, image, mask).items()}
    gini = sum(abs(a - b) for a in (3, 1, 0, 0) for b in (3, 1, 0, 0)) / (2 * 4 * (3 + 1))
    assert found["gini"] == pytest.approx(gini) == pytest.approx(0.625)
    assert found["area_half"] == 0.25
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert found["entropy"] == pytest.approx(entropy)
    assert found["object"] == pytest.approx(0.75 / 0.25)
    assert set(found) == set(MEASURES)


def test_edges_are_those_of_the_image():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1  # one upright edge between columns 7 and 8
    on_edge, off_edge = torch.zeros(2, 1, 16, 16)
    on_edge[..., 7:9], off_edge[..., :2] = 1, 1
    empty = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert float(measure_maps(on_edge, image, empty)["edges"]) == pytest.approx(1)
    assert float(measure_maps(off_edge, image, empty)["edges"]) < 0
    assert math.isnan(float(measure_maps(on_edge, image, empty)["object"]))


def test_a_constant_map_says_nothing_of_where():
    found = measure_maps(torch.full((1, 4, 4), 7.0), torch.rand(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool))
    assert all(math.isnan(float(value)) for value in found.values())


def test_the_table_measures_the_magnitude_of_every_layer(mine, pictures):
    images = pictures(mine, 2)
    study = ac.studies.layers(mine, images, ["conv1", "conv3"])
    table = study.table()
    assert table[["image", "layer", "depth", "grid", "channels"]].values.tolist() == [
        ["image 0", "conv1", 1, "32x32", 8],
        ["image 0", "conv3", 2, "8x8", 16],
        ["image 1", "conv1", 1, "32x32", 8],
        ["image 1", "conv3", 2, "8x8", 16],
    ]
    large = nn.functional.interpolate(
        torch.from_numpy(study.layers[1].magnitude)[1:, None], size=(32, 32), mode="bilinear"
    ).flatten()
    values = sorted(float(value - large.min()) for value in large)
    gini = sum((2 * (i + 1) - 1024 - 1) * value for i, value in enumerate(values)) / (1024 * sum(values))
    assert table.gini.iloc[3] == pytest.approx(gini, abs=1e-5)
    assert table.area_half.iloc[3] == pytest.approx(np.mean(np.array(values) >= max(values) / 2), abs=2e-3)
    assert table["mean"].iloc[3] == pytest.approx(float(study.layers[1].mean[1].mean()))
    assert table.object.isna().all()


def test_labels_and_masks_come_with_the_data():
    study = ac.studies.layers(ac.load_model("demo/cnn"), ac.open_dataset("shapes", 3), ["2"])
    shapes = ac.open_dataset("shapes", 3)
    samples = [shapes.load(name) for name in shapes.names]
    assert study.pictures.labels == tuple(shapes.class_names[one.label] for one in samples) == study.predicted
    assert [mask.tolist() for mask in study.pictures.masks] == [one.mask.tolist() for one in samples]
    assert (study.table().object > 1).all()


@pytest.mark.parametrize(
    ("layers", "channels", "error", "message"),
    [
        (["conv4"], 3, UnknownNameError, "mine has no layer 'conv4'; did you mean conv3"),
        (["fc"], 3, CaptureError, r"layer 'fc' returns shape \(1, 5\), which does not lie on an image of \(32, 32\)"),
        (["conv1", "conv1"], 3, SpecError, "conv1 is listed twice"),
        ([], 3, SpecError, "layers is empty"),
        (["conv1"], 0, SpecError, "channels must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(mine, pictures, layers, channels, error, message):
    with pytest.raises(error, match=message):
        ac.studies.layers(mine, pictures(mine, 1), layers, channels)


def test_pictures_are_files_arrays_or_data(mine, tmp_path):
    pixels = np.asarray(Image.open(CAT))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = [ac.studies.layers(mine, one, "conv1") for one in (CAT, [pixels], ac.open_dataset(str(tmp_path)))]
    for one in found[1:]:
        np.testing.assert_array_equal(one.layers[0].mean, found[0].layers[0].mean)
    assert [one.pictures.names for one in found] == [("chelsea.png",), ("image 0",), ("a.png",)]
    assert list(found[2].pictures.unreadable) == ["b.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="no image can be read"):
        ac.studies.layers(mine, ac.open_dataset(str(tmp_path)), "conv1")


@pytest.mark.parametrize("venue", ["cvpr", "a4"])
def test_the_figure_says_what_is_shown(venue):
    study = ac.studies.layers(ac.load_model("demo/cnn"), ac.open_dataset("shapes", 2), ["0.2", "2"], 8)
    figure = layers_figure(study, 1, venue)
    assert faults(figure) == []
    words = " ".join(" ".join(text for text, _ in drawn_texts(figure)).split())
    for one in study.layers:
        assert f"{one.layer} ({one.grid[0]}x{one.grid[1]})" in words
        for index, values in zip(one.index[1], one.strongest[1], strict=True):
            assert f"channel {index} mean {values.mean():.3g}" in words
    assert f"true: tee · predicted: tee ({study.probability[1]:.2f})" in words
    pictures = sum(bool(axes.images) for axes in figure.axes)
    assert pictures == 2 * (2 + 8)


def test_the_command_draws_layers_and_saves_their_maps(tmp_path):
    asked = ("explain", CAT, "-m", "demo/cnn", "--method", "activation", "--layers", "0,1", "--layers", "2")
    found = run(*asked, "--channels", 2, "--out", tmp_path)
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "chelsea-png"
    assert sorted(path.suffix for path in folder.iterdir()) == [".npz", ".pdf", ".png"]
    table = pd.read_csv(tmp_path / "layers.csv", dtype={"layer": str})
    assert table.layer.tolist() == ["0", "1", "2"] and set(MEASURES) <= set(table.columns)
    assert "32x32" in found.stdout and f"{table.gini.iloc[0]:.3f}" in found.stdout
    study = ac.studies.layers(ac.load_model("demo/cnn"), CAT, ["0", "1", "2"], 2)
    with np.load(next(folder.glob("*.npz"))) as saved:
        assert saved["layers"].tolist() == ["0", "1", "2"]
        np.testing.assert_allclose(saved["mean1"], study.layers[1].mean[0], atol=1e-6)
        np.testing.assert_allclose(saved["strongest2"], study.layers[2].strongest[0], atol=1e-6)
        assert saved["index2"].tolist() == study.layers[2].index[0].tolist()
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["settings"] == {"images": ["chelsea.png"], "layers": ["0", "1", "2"], "channels": 2}
    assert about["models"]["demo/cnn"]["weights_hash"]


def test_the_command_names_what_it_leaves_out(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = run("explain", CAT, tmp_path / "bad.png", "--layers", "blocks.5", "--out", tmp_path / "out")
    assert found.returncode == 0
    assert "unsupported: demo/cnn has no layer 'blocks.5'" in found.stderr and "left out: " in found.stderr
    assert pd.read_csv(tmp_path / "out" / "layers.csv").model.tolist() == ["demo/vit"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "conv1"], "error: demo/cnn has no layer 'conv1'; did you mean"),
        (["--layers", "5"], "error: layer '5' returns shape (1, 8), which does not lie on an image of (64, 64)"),
        (["--layers", "0", "--method", "grad_cam"], "--layers shows activation, not grad_cam"),
        (["--layers", "0", "--option", "activation.layer=1"], "leave out --option activation.layer"),
        (["--layers", "0", "--top", "3"], "three questions; ask one of them in a command"),
        (["--channels", "0"], "channels must be at least 1, not 0"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, words, message):
    found = run("explain", CAT, "-m", "demo/cnn", *words, "--out", tmp_path / "out")
    assert found.returncode == 1 and message in found.stderr
    assert found.stderr.strip().count("\n") == 0 and not (tmp_path / "out").exists()
