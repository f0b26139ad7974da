"""TCAV: scores are the derivatives worked out by hand, and chance is not called a concept."""

import copy
import json
import os
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

import attncompare as ac
from attncompare.data.shape_concepts import CONCEPTS, add_concept, concept_pictures
from attncompare.data.shapes import CLASS_NAMES, render_shape
from attncompare.errors import CaptureError, SpecError, UnknownNameError
from attncompare.reporting.studies.concepts import concepts_figure
from attncompare.studies.concept_sets import deal
from attncompare.studies.concept_vectors import LinearConcept, Question, score_pairs
from attncompare.studies.concepts import chosen_layers, null_means, null_test, tcav, welch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


class Squares(nn.Module):
    """Colors (B,3) are the layer; logit k is sum_j w_kj color_j^2 / 2, so its derivative is w_k times the colors."""

    def __init__(self) -> None:
        super().__init__()
        self.colors, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.relu = nn.ReLU(inplace=True)  # overwrites what the layer before it returned
        self.weights = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.0, 3.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.flat(self.colors(images))
        return (self.relu(x + 10) - 10).square() @ self.weights.T / 2


@pytest.fixture(scope="module")
def squares():
    return ac.wrap_model(Squares(), size=(8, 8), mean=MEAN, std=STD, name="squares", class_names=("up", "down"))


def colors_of(images):
    """The layer of `Squares`, by hand, in float64."""
    shape = (1, 3, 1, 1)
    normal = (images.double() - torch.tensor(MEAN).reshape(shape)) / torch.tensor(STD).reshape(shape)
    return normal.mean(dim=(2, 3))


def noise(count, seed, color=(0.5, 0.5, 0.5), size=8):
    draw = torch.Generator().manual_seed(seed)
    plain = torch.tensor(color).reshape(1, 3, 1, 1) + 0.15 * torch.randn(count, 3, 1, 1, generator=draw)
    return (plain + 0.02 * torch.randn(count, 3, size, size, generator=draw)).clamp(0, 1)


def vector_of(first, second, seed=0):
    """The unit vector from the second set to the first, fitted to the layer worked out by hand."""
    batches = [(colors_of(one).float(), torch.full((len(one),), label)) for label, one in enumerate((first, second))]
    machine = LinearConcept(seed)
    machine.train_and_eval(batches)
    return machine.weights()[0].double()


@pytest.mark.parametrize("target", [0, 1])
def test_score_and_magnitude_are_the_directional_derivatives_worked_out_by_hand(squares, target):
    red, other, images = noise(20, 1, (0.9, 0.5, 0.5)), noise(20, 2), noise(40, 3)  # 40: two batches
    question = Question(images, target, batch=32, seed=0)
    found = score_pairs(squares, {"flat": 3}, [red, other], [(0, 1)], question, lambda count, path: None).iloc[0]
    vector = vector_of(red, other)
    assert float(vector[0]) > 0.9 and float(vector.norm()) == pytest.approx(1)
    derivatives = (colors_of(images) * squares.module.weights[target].detach().double()) @ vector
    assert 0.1 < float((derivatives > 0).double().mean()) < 0.9, "both signs must occur for the score to be tested"
    assert found.score == pytest.approx(float((derivatives > 0).double().mean()), abs=1e-6)
    assert found.magnitude == pytest.approx(float(derivatives.mean()), rel=1e-4)


def test_a_concept_that_the_class_uses_is_told_from_one_that_it_does_not(squares):
    images = noise(12, 5, (0.9, 0.9, 0.9))  # all colors above the mean: the derivative has the sign of the weight
    concepts = {"red": noise(8, 6, (0.95, 0.5, 0.5)), "green": noise(8, 7, (0.5, 0.95, 0.5))}
    found = tcav(squares, images, "class:up", concepts, noise(80, 8), "flat")
    table = found.table.set_index(["measure", "concept"])
    assert found.target == "up" and found.size == 8 and found.images == 12
    assert table.loc[("score", "red"), "mean"] > 0.95 and table.loc[("score", "green"), "mean"] < 0.05
    assert table.loc[("magnitude", "red"), "mean"] > 0 > table.loc[("magnitude", "green"), "mean"]
    assert (table.accuracy > 0.8).all()
    down = tcav(squares, images, "class:down", {"green": concepts["green"]}, noise(80, 8), "flat").table
    assert abs(down["mean"][1]) < 0.5 * abs(table.loc[("magnitude", "green"), "mean"]), "class down has no green weight"


def test_runs_are_all_concepts_and_all_pairs_of_random_sets(squares):
    found = tcav(squares, noise(4, 5), 0, {"a": noise(6, 6), "b": noise(9, 7)}, noise(60, 8), "flat")
    runs = found.runs
    assert list(runs.groupby("kind").size()) == [20, 45]
    assert set(runs[runs.kind == "concept"].partner) == set(range(10))
    assert found.size == 6 and len(found.table) == 4
    assert runs.score.between(0, 1).all() and runs.accuracy.between(0, 1).all()


def test_accuracy_is_measured_on_images_that_the_vector_was_not_fitted_to():
    draw = np.random.default_rng(0)
    x, labels = torch.tensor(draw.normal(size=(60, 500))).float(), torch.tensor([0, 1] * 30)
    machine = LinearConcept(0)
    accuracy = float(machine.train_and_eval([(x, labels)])["accs"])
    on_all = float(((x @ machine.weights()[1] > (x @ machine.weights()[1]).median()).long() == labels).double().mean())
    assert on_all > 0.8, "in 500 dimensions most of 60 points can be told apart by heart"
    assert accuracy < 0.75, "on the others it is chance"


def test_the_null_of_a_set_is_its_mean_over_the_other_sets():
    runs = pd.DataFrame(
        {"concept": ["0", "0", "1"], "partner": [1, 2, 2], "score": [0.2, 0.4, 0.9], "magnitude": [1.0, 2.0, 4.0]}
    )
    np.testing.assert_allclose(null_means(runs, "score"), [0.3, (0.8 + 0.9) / 2, (0.6 + 0.1) / 2])
    np.testing.assert_allclose(null_means(runs, "magnitude"), [1.5, (-1 + 4) / 2, (-2 - 4) / 2])


def chance_p(draw, sets=10, size=20, features=40, images=16):
    """p of a concept whose images are random as well: of the set-wise test (score, magnitude) and of the run-wise one."""
    gradients = draw.normal(size=(images, features)) + draw.normal(size=features)
    means = draw.normal(size=(sets + 1, size, features)).mean(axis=1)  # the last set plays the concept
    rows = []
    for first in range(sets + 1):
        for second in range(first + 1, sets + 1) if first < sets else range(sets):
            vector = means[first] - means[second]
            along = gradients @ (vector / np.linalg.norm(vector))
            rows.append((str(first), second, (along > 0).mean(), along.mean()))
    runs = pd.DataFrame(rows, columns=["concept", "partner", "score", "magnitude"])
    random = runs[(runs.concept != str(sets)) & (runs.partner != sets)]
    own = runs[runs.concept == str(sets)]
    score, _ = null_test(own.score.mean(), null_means(random, "score"), 1 / images)
    magnitude, _ = null_test(own.magnitude.mean(), null_means(random, "magnitude"), 0)
    both = np.concatenate([random.score, 1 - random.score])
    return score, magnitude, welch(own.score.to_numpy(), both)


def test_a_concept_of_random_images_is_significant_in_no_more_than_5_percent():
    draw = np.random.default_rng(0)
    score, magnitude, run_wise = (np.array([chance_p(draw) for _ in range(400)]) < 0.05).mean(axis=0)
    # binomial: 0.05 + 2.5 standard errors of 400 draws is 0.077
    assert score <= 0.077 and 0.02 <= magnitude <= 0.077, (score, magnitude)
    assert run_wise > 0.3, "the published test takes runs that share a set for independent"


def test_a_null_that_does_not_vary_says_nothing_below_its_resolution():
    p, band = null_test(0.55, np.full(10, 0.5), 0.1)
    assert p > 0.5 and band[0] < 0.5 < band[1]
    assert null_test(0.0, np.zeros(10), 0.0) == (1.0, (0.0, 0.0))
    assert welch(np.ones(3), np.ones(4)) == 1 and welch(np.ones(3), np.zeros(4)) == 0


def test_the_same_seed_gives_the_same_table(squares):
    first, second, other = (
        tcav(squares, noise(6, 5), 0, {"red": noise(9, 6)}, noise(70, 8), "flat", seed=seed).runs for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(other)


def test_token_layers_are_taken_whole_and_sets_come_in_any_form(tmp_path):
    model = ac.load_model("demo/vit")
    for number, picture in enumerate(concept_pictures("tips", 6, without="star")):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    random = [ac.load_images(concept_pictures(None, 6, start=100 * n), model) for n in range(10)]
    found = tcav(
        model, [render_shape(i).image for i in range(3)], 4, {"tips": str(tmp_path)}, random, ["blocks.2", "blocks.5"]
    )
    assert found.layers == ("blocks.2", "blocks.5") and len(found.runs) == 2 * 55
    assert np.isfinite(found.table.select_dtypes("number")).all().all()


@pytest.mark.parametrize(("name", "last"), [("demo/vit", "blocks.5"), ("demo/cnn", "2")])
def test_the_layers_of_ones_own_choice_end_before_the_classifier(name, last):
    model = ac.load_model(name)
    found = chosen_layers(model, None, torch.rand(2, 3, 64, 64))
    assert found[0][-1] == last and found[1][last] == {"blocks.5": 65 * 128, "2": 128 * 8 * 8}[last]


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_model_disk_and_random_state_are_left_as_found(squares, caller, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    weights, before = copy.deepcopy(squares.module.state_dict()), torch.get_rng_state()
    squares.module.train()
    with caller():
        tcav(squares, noise(4, 5), 0, {"a": noise(6, 6)}, noise(60, 8), "flat")
    assert os.listdir(tmp_path) == [], "Captum's files are gone"
    assert torch.equal(torch.get_rng_state(), before) and squares.module.training
    assert all(torch.equal(weights[k], v) for k, v in squares.module.state_dict().items())
    assert not any(getattr(module, name) for module in squares.module.modules() for name in HOOKS)
    assert all(p.requires_grad and p.grad is None for p in squares.module.parameters())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target": None}, SpecError, "one class"),
        ({"target": 2}, SpecError, "out of range"),
        ({"target": "class:left"}, SpecError, "no class named"),
        ({"concepts": {}}, SpecError, "no concept"),
        ({"concepts": "striped/"}, SpecError, "concepts are a str; .*{'striped': 'striped/'}"),
        ({"concepts": {"few": noise(3, 0)}}, SpecError, "concept 'few' has 3 images"),
        ({"random": noise(59, 0)}, SpecError, "59 random images"),
        ({"random": [noise(6, n) for n in range(9)]}, SpecError, "9 random sets"),
        ({"random": [noise(6, 2)] * 10}, SpecError, "random set 8 and random set 9 share an image"),
        ({"concepts": {"a": noise(60, 2)[:6]}}, SpecError, "concept 'a' and random set . share an image"),
        ({"concepts": {"a": noise(6, 1)[[0, 1, 2, 3, 4, 4]]}}, SpecError, "concept 'a' holds an image twice"),
        ({"layers": "flatt"}, UnknownNameError, "did you mean flat"),
        ({"layers": ("flat", "flat")}, SpecError, "none twice"),
        ({"images": noise(2, 0, size=9)}, SpecError, "need"),
        ({"concepts": {"gone": "no/such/folder"}}, SpecError, "no/such/folder"),
    ],
)
def test_questions_that_have_no_answer_are_refused(squares, change, error, words):
    asked = {
        "images": noise(2, 0),
        "target": 0,
        "concepts": {"a": noise(6, 1)},
        "random": noise(60, 2),
        "layers": "flat",
    }
    with pytest.raises(error, match=words):
        tcav(squares, **(asked | change))


class Dead(Squares):
    """A ReLU behind the layer is off for every image, so that each derivative is exactly 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.relu(self.flat(self.colors(images)) - 100) @ self.weights.T


class Detached(Squares):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.flat(self.colors(images)).detach() @ self.weights.T


class Unused(Squares):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.flat(images)
        return images.mean((2, 3)) @ self.weights.T


@pytest.mark.parametrize("module", [Dead, Detached, Unused])
def test_a_layer_through_which_no_gradient_flows_is_refused(module):
    model = ac.wrap_model(module(), size=(8, 8), name="dead")
    with pytest.raises(CaptureError, match="every derivative in layer 'flat' of dead is 0: no gradient of class 0"):
        tcav(model, noise(2, 0), 0, {"a": noise(6, 1)}, noise(60, 2), "flat")


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Paired(Squares):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pair(images)[0])


def test_a_layer_of_several_tensors_is_refused():
    model = ac.wrap_model(Paired(), size=(8, 8), name="paired")
    with pytest.raises(CaptureError, match="'pair' returns tuple"):
        tcav(model, noise(2, 0), 0, {"a": noise(6, 1)}, noise(60, 2), "pair")


def test_sets_are_dealt_without_an_image_in_two_of_them(squares):
    names, sets = deal(squares, {"a": noise(7, 1)}, noise(95, 2), seed=0)
    assert names == ("a",) and [len(one) for one in sets] == [7] * 11
    assert len(torch.unique(torch.cat(sets[1:]).flatten(1), dim=0)) == 70


def test_two_concepts_may_share_images(squares):
    names, sets = deal(squares, {"a": noise(7, 1), "b": noise(7, 1)}, noise(70, 2), seed=0)
    assert names == ("a", "b") and len(sets) == 12


@pytest.mark.parametrize("concept", CONCEPTS)
def test_concepts_are_painted_into_pictures_of_other_classes(concept):
    shown, plain = (concept_pictures(one, 12, without="star", start=50) for one in (concept, None))
    changed = [(a != b).any(axis=2).mean() for a, b in zip(shown, plain, strict=True)]
    assert min(changed) > 0.01 and (max(changed) < 0.6) == (concept != "stripes")
    labels = [render_shape(50 + i, "val").label for i in range(30)]
    assert CLASS_NAMES.index("star") in labels, "there was one to leave out"
    np.testing.assert_array_equal(add_concept(plain[0], concept, 9), add_concept(plain[0], concept, 9))


def test_unknown_concepts_and_classes_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean stripes"):
        concept_pictures("stripe", 1)
    with pytest.raises(SpecError, match="no class 'cat'"):
        concept_pictures("tips", 1, without="cat")


def test_the_figure_shows_means_intervals_band_and_stars(squares):
    concepts = {"red": noise(8, 6, (0.95, 0.5, 0.5)), "green": noise(8, 7, (0.5, 0.95, 0.5))}
    found = tcav(squares, noise(12, 5, (0.9, 0.9, 0.9)), 0, concepts, noise(80, 8), "flat")
    figure = concepts_figure(found, venue="cvpr")
    score, magnitude = figure.axes
    assert figure.get_figwidth() == 3.25
    rows = found.table[found.table.measure == "magnitude"]
    shown = [line.get_ydata()[0] for line in magnitude.lines if line.get_marker() in "os" and len(line.get_ydata())]
    np.testing.assert_allclose(shown, rows["mean"])
    assert magnitude.patches[0].get_height() == pytest.approx((rows.null_high - rows.null_low).iloc[0])
    stars = sum(text.get_text() == "*" for axes in figure.axes for text in axes.texts)
    assert stars == found.table.significant.sum()
    assert score.get_ylabel() == "TCAV score"


def test_the_command_reads_folders_and_writes_tables_and_figure(tmp_path):
    for folder, pictures in {
        "tips": concept_pictures("tips", 6),
        "random": concept_pictures(None, 60, start=500),
        "stars": [render_shape(i).image for i in range(2)],
    }.items():
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / folder / f"{number}.png")
    asked = ["study", "tcav", "--target", "star", "--layers", "2", "--out", tmp_path / "out"]
    folders = ["--concept", tmp_path / "tips", "--random", tmp_path / "random", "--data", tmp_path / "stars"]
    done = run(*asked, *folders, "--json")
    assert done.returncode == 0, done.stderr
    assert [(row["measure"], row["concept"]) for row in json.loads(done.stdout)] == [
        ("score", "tips"),
        ("magnitude", "tips"),
    ]
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 55
    assert {"study.json", "concepts.csv", "concepts.pdf", "concepts.png"} <= set(os.listdir(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "study.json").read_text())["settings"]["set_size"] == 6
    twice = run(*asked, *folders, "--concept", tmp_path / "tips")
    assert twice.returncode == 1 and "two have one name" in twice.stderr


def test_the_command_has_concepts_of_its_own(tmp_path):
    shapes = run("study", "tcav", "--layers", "2", "--limit", 6, "--concept", "shapes:tips", "--out", tmp_path)
    assert shapes.returncode == 0, shapes.stderr
    assert list(pd.read_csv(tmp_path / "concepts.csv").concept) == ["tips", "tips"]
    wrong = run("study", "tcav", "--concept", "shapes:tip", "--out", tmp_path)
    assert wrong.returncode == 1 and "did you mean tips" in wrong.stderr
