"""Trends over depth and attention distances: against slow loops, hand-made numbers, and the study's own files."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage
import torch
from command_line import run
from references.layout import drawn_texts, faults

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.errors import ImageError, ResultFormatError, SpecError, UnsupportedModelError
from attncompare.inspection.layout import TokenLayout
from attncompare.reporting.studies.layer_trends import distance_figure, trends_figure
from attncompare.signals._base import request
from attncompare.studies.attention_distance import mean_attention_distance, patch_distances
from attncompare.studies.depth_trends import ACTIVATION, ATTENTION, COARSEST, DISTANCE, OWN, layer_trends, trend

CAT = Path(skimage.__file__).parent / "data" / "chelsea.png"


def slow_distance(attention, layout, size):
    """As the definition says it, one query and one key at a time."""
    h, w = layout.grid
    centers = [((y + 0.5) * size[0] / h, (x + 0.5) * size[1] / w) for y in range(h) for x in range(w)]
    total = 0.0
    for q, here in enumerate(centers):
        row = [float(attention[layout.prefix + q, layout.prefix + k]) for k in range(len(centers))]
        total += sum(share * math.dist(here, there) for share, there in zip(row, centers, strict=True)) / sum(row)
    return total / len(centers)


@pytest.mark.parametrize("layout", [TokenLayout(1, (2, 3), 0), TokenLayout(0, (3, 3)), TokenLayout(5, (2, 2), 0)])
def test_the_distance_is_that_of_a_slow_loop(layout):
    attention = torch.rand(2, 3, layout.length, layout.length, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = mean_attention_distance(attention, layout, (32, 48))
    for image in range(2):
        for head in range(3):
            expected = slow_distance(attention[image, head], layout, (32, 48))
            assert float(found[image, head]) == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_heads_that_are_known():
    layout = TokenLayout(1, (4, 4), 0)
    itself = torch.eye(17)[None, None]
    right = torch.zeros(1, 1, 17, 17)
    for patch in range(16):  # each patch attends to its neighbor on the right, the last of a row to itself
        right[0, 0, 1 + patch, 1 + patch + (patch % 4 < 3)] = 1
    alike = torch.full((1, 1, 17, 17), 1 / 17)
    found = [float(mean_attention_distance(one, layout, (64, 64))) for one in (itself, right, alike)]
    assert found[:2] == [0, 16 * 3 / 4]
    assert found[2] == pytest.approx(float(patch_distances(layout, (64, 64)).mean()), rel=1e-6)


def test_queries_that_see_no_patch_do_not_count():
    attention = torch.zeros(1, 1, 3, 3)
    attention[0, 0, 1, 0], attention[0, 0, 2, 1] = 1, 1  # one patch attends to the class token, one to the other patch
    assert mean_attention_distance(attention, TokenLayout(1, (1, 2), 0), (8, 16)).tolist() == [[8.0]]


@pytest.mark.parametrize("name", ["vit", "vit_oblong", "vit_registers", "vit_mean", "hf_vit", "vit_torchvision"])
def test_distances_are_those_of_the_recorded_attention(tiny, pictures, name):
    model = tiny(name)
    images, need = pictures(model, 5), request("attention")
    found = ac.studies.attention_distances(model, images)
    assert found.blocks == model.structure.attention_blocks and found.values.shape == (5, len(found.blocks), 2)
    recorded = record(model, images, [need]).signals[need]
    for block in range(len(found.blocks)):
        for image, head in ((0, 0), (4, 1)):
            expected = slow_distance(recorded[block][image, head], model.tokens, model.size)
            assert found.values[image, block, head] == pytest.approx(expected, rel=1e-5)


def test_blocks_of_one_query_have_no_distance(tiny, pictures):
    model = tiny("cait")
    found = ac.studies.attention_distances(model, pictures(model, 1))
    assert model.structure.pooling_blocks and set(found.blocks).isdisjoint(model.structure.pooling_blocks)
    assert (found.values > 0).all()


@pytest.mark.parametrize("name", ["cnn", "swin"])
def test_models_without_global_attention_are_refused_with_the_reason(tiny, pictures, name):
    with pytest.raises(UnsupportedModelError, match=f"tiny/{name} has no attention distance: ."):
        ac.studies.attention_distances(tiny(name), pictures(tiny(name), 1))


def test_a_trend_by_hand():
    values = np.array([[1.0, 2.0, 3.0, 5.0], [0.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 7.0]]).repeat(2, axis=0)
    rising = trend(values)
    assert rising["rho"] == pytest.approx((1 + 1 + 0.8) / 3) and rising["change"] == pytest.approx((4 + 6 + 5) / 3)
    assert rising["verdict"] == "rises" and rising["n"] == 6
    assert rising["rho_low"] <= rising["rho"] <= rising["rho_high"]
    falling = trend(-values)
    assert falling["verdict"] == "falls" and falling["rho"] == pytest.approx(-rising["rho"])


def test_a_trend_needs_both_the_ranks_and_the_ends():
    rng = np.random.default_rng(0)
    assert trend(rng.normal(size=(40, 5)))["verdict"] == "open"
    risen = np.tile([5.0, 0.0, 1.0, 2.0, 3.0], (40, 1)) + rng.normal(scale=0.01, size=(40, 5))
    found = trend(risen)  # ranks rise in the mean, the last layer lies below the first
    assert found["rho_low"] >= 0 and found["change_high"] < 0 and found["verdict"] == "open"
    flat = trend(np.ones((8, 4)))
    assert (flat["n"], flat["change"], flat["verdict"]) == (0, 0, "open") and np.isnan(flat["rho"])


@pytest.fixture(scope="module")
def found():
    models = [ac.load_model("demo/cnn"), ac.load_model("demo/vit")]
    return ac.studies.layer_trends(models, "shapes", 20)  # two batches


def test_values_are_those_of_the_table_of_layers(found):
    model = ac.load_model("demo/cnn")
    study = ac.studies.layers(model, ac.open_dataset("shapes", 20))
    table = study.table().set_index(["image", "depth"])
    own = found.values[(found.values.model == "demo/cnn") & (found.values.grid == OWN)]
    assert len(own) == 20 * 4 * 5
    for measure, rows in own.groupby("measure"):
        values = rows.set_index(["image", "depth"]).value
        np.testing.assert_allclose(values, table.loc[values.index, measure], atol=2e-4)
    pooled = found.values[(found.values.model == "demo/cnn") & (found.values.grid == COARSEST)]
    layer = study.layers[1].magnitude[3]
    cells = layer.reshape(8, 4, 8, 4).mean(axis=(1, 3))  # 32x32 to the 8x8 of the last stage
    large = torch.nn.functional.interpolate(torch.from_numpy(cells)[None, None], size=(64, 64), mode="bilinear")[0, 0]
    large = ((large - large.min()) / (large.max() - large.min())).numpy()
    mask = study.pictures.masks[3].numpy()
    expected = large[mask].sum() / large.sum() / mask.mean()
    row = pooled[(pooled.image == study.pictures.names[3]) & (pooled.depth == 2) & (pooled.measure == "object")]
    assert float(row.value.iloc[0]) == pytest.approx(expected, rel=1e-4)


def test_the_last_layer_is_its_own_coarsest_grid_and_a_vit_has_but_one(found):
    means = found.means().set_index(["model", "grid", "measure", "depth"])["mean"]
    for measure in ("gini", "object", "edges"):
        assert means["demo/cnn", OWN, measure, 4] == pytest.approx(means["demo/cnn", COARSEST, measure, 4], rel=1e-5)
    assert set(found.values[found.values.model == "demo/vit"].grid) == {OWN}


def test_class_attention_is_measured_beside_the_activation(found):
    model, data = ac.load_model("demo/vit"), ac.open_dataset("shapes", 20)
    pictures = ac.studies.layers(model, data).pictures
    shown = ac.make_explainer(model, "class_attention", block=4).explain(pictures.images)
    large = shown.resized((64, 64)).normalized().values
    expected = (large * pictures.masks).sum((1, 2)) / large.sum((1, 2)) / pictures.masks.float().mean((1, 2))
    rows = found.values[
        (found.values["map"] == ATTENTION) & (found.values.depth == 5) & (found.values.measure == "object")
    ]
    assert rows.image.tolist() == list(pictures.names) and set(rows.layer) == {"blocks.4.attn"}
    np.testing.assert_allclose(rows.value, expected, rtol=1e-4)
    assert set(found.values[found.values["map"] == ATTENTION].model) == {"demo/vit"}


def test_means_and_heads_are_means_over_the_images(found):
    chosen = (found.values.model == "demo/vit") & (found.values["map"] == ACTIVATION)
    own = found.values[chosen & (found.values.measure == "gini") & (found.values.depth == 2)]
    row = found.means().set_index(["model", "map", "measure", "depth"]).loc[("demo/vit", ACTIVATION, "gini", 2)]
    assert row.n == 20 and row["mean"] == pytest.approx(own.value.mean()) and row.low < row["mean"] < row.high
    distances = ac.studies.attention_distances(ac.load_model("demo/vit"), ac.open_dataset("shapes", 20))
    heads = found.heads.set_index(["depth", "head"])["mean"]
    assert heads[3, 1] == pytest.approx(distances.values[:, 2, 1].mean(), rel=1e-5)
    means = found.means()
    blocks = means[means.measure == DISTANCE].set_index("depth")["mean"]
    assert blocks[3] == pytest.approx(distances.values[:, 2].mean(), rel=1e-5)
    assert set(found.heads.model) == {"demo/vit"} and len(found.heads) == 6 * 4


def test_trends_are_paired_within_images(found):
    rows = found.values[
        (found.values.model == "demo/cnn") & (found.values.grid == OWN) & (found.values.measure == "edges")
    ]
    by_depth = rows.pivot(index="image", columns="depth", values="value").to_numpy()
    row = found.trends().set_index(["model", "grid", "measure"]).loc[("demo/cnn", OWN, "edges")]
    assert row.change == pytest.approx((by_depth[:, 3] - by_depth[:, 0]).mean())
    ranks = [np.corrcoef(np.argsort(np.argsort(one)), np.arange(4))[0, 1] for one in by_depth]
    assert row.rho == pytest.approx(np.mean(ranks), abs=1e-6)


def test_what_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(CAT.read_bytes())
    (folder / "b.png").write_bytes(b"no image")
    found = ac.studies.layer_trends(ac.load_model("demo/cnn@random"), str(folder))
    assert list(found.unreadable) == ["b.png"] and set(found.values.image) == {"a.png"}
    assert "object" not in set(found.trends().measure) and found.heads.empty  # no masks, no attention
    with pytest.raises(ResultFormatError, match="no model has global attention"):
        distance_figure(found)
    (folder / "a.png").unlink()
    with pytest.raises(ImageError, match="no image can be read"):
        ac.studies.layer_trends(ac.load_model("demo/cnn@random"), str(folder))
    with pytest.raises(SpecError, match="no models were given"):
        ac.studies.layer_trends([], "shapes", 1)


@pytest.mark.parametrize("venue", ["cvpr", "a4"])
def test_the_figures_can_be_read(found, venue):
    for figure in (trends_figure(found, venue), distance_figure(found, venue)):
        assert faults(figure) == []
        words = " ".join(" ".join(text for text, _ in drawn_texts(figure)).split())
        assert ("shapes (n = 20)" in words or "on shapes, n = 20" in words) and "demo/vit" in words
    dots = distance_figure(found).axes[0].lines[0]
    np.testing.assert_allclose(dots.get_ydata(), found.heads["mean"])


def test_the_command_shows_an_example():
    assert "attncompare study layers --model demo/cnn" in " ".join(run("study", "layers", "--help").stdout.split())


def test_the_command_writes_tables_and_figures(tmp_path):
    asked = ("study", "layers", "--model", "demo/se_cnn", "--model", "demo/vit", "--data", "shapes", "--limit", 3)
    done = run(*asked, "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    printed = pd.DataFrame(json.loads(done.stdout))
    trends = pd.read_csv(tmp_path / "layer-trends.csv")
    assert printed.rho.round(6).tolist() == trends.rho.round(6).tolist()
    assert {"demo/se_cnn", "demo/vit"} == set(trends.model) and set(trends.n) == {3}
    assert len(pd.read_csv(tmp_path / "layer-values.csv")) == 3 * (4 * 5 * 2 + 6 * 5 * 2 + 6)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"layer-trends.pdf", "layer-means.csv", "attention-distance.csv", "attention-distance.png"} <= names
    assert len(list(tmp_path.glob("layers-demo-*.png"))) == 2
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["settings"] == {"data": "shapes", "limit": 3, "images": 3}


def test_few_images_have_no_verdict_and_one_name_is_one_model():
    rising = np.arange(5.0) + np.zeros((6, 1))
    assert trend(rising)["verdict"] == "rises" and trend(rising[:5])["verdict"] == "open"
    model = ac.load_model("demo/cnn")
    with pytest.raises(SpecError, match="demo/cnn is listed twice"):
        layer_trends([model, model], "shapes", limit=1)
