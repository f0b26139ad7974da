"""Feature inversion: the loss is the paper's, it falls on every layer, and the model is left as found."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

import attncompare as ac
from attncompare.data.shapes import render_shape
from attncompare.errors import CaptureError, SpecError, UnknownNameError
from attncompare.reporting.studies.inversion import inversion_figure
from attncompare.studies.inversion import invert, layers_over_depth, relative_loss, total_variation
from attncompare.studies.layer_output import layer_outputs, run_up_to

STEPS = 100
HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


@pytest.fixture(scope="module")
def demo():
    return {name: ac.load_model(name) for name in ("demo/cnn", "demo/vit")}


@pytest.fixture(scope="module")
def picture(demo):
    return ac.load_images(render_shape(7).image, demo["demo/cnn"])


@pytest.fixture(scope="module")
def inverted(demo, picture):
    return {name: invert(model, picture, steps=STEPS) for name, model in demo.items()}


def output_by_hook(model, path, images):
    """The layer's output, by a bare hook on the bare module with the demo models' own normalization."""
    seen = []
    handle = model.module.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model.module((images - 0.5) / 0.25)
    handle.remove()
    return seen[0].double()


def test_total_variation_and_its_gradient_are_those_worked_out_by_hand():
    image = torch.tensor([[[[0.0, 1.0, 3.0], [0.0, 4.0, 0.0]]]], dtype=torch.float64, requires_grad=True)
    value = total_variation(image)
    # right: 1 + 4 + 16 + 16; down: 0 + 9 + 9; six values
    assert value.item() == pytest.approx((37 + 18) / 6)
    (gradient,) = torch.autograd.grad(value, image)
    # twice the sum of (value - neighbor) over the neighbors, over six
    by_hand = torch.tensor([[-1 - 0, 1 - 2 - 3, 2 + 3], [-4 + 0, 4 + 4 + 3, -4 - 3]]) * 2 / 6
    np.testing.assert_allclose(gradient[0, 0].numpy(), by_hand.numpy(), atol=1e-12)


def test_relative_loss_is_0_on_the_goal_1_without_features_and_4_on_their_opposite():
    goal = torch.tensor([[3.0, 4.0]])
    assert [float(relative_loss(scale * goal, goal)) for scale in (1, 0, -1)] == [0, 1, 4]


@pytest.mark.parametrize("name", ["demo/cnn", "demo/vit"])
def test_the_loss_falls_by_90_percent_on_every_layer(inverted, demo, name):
    found = inverted[name]
    assert found.layers == layers_over_depth(demo[name]) and len(found.layers) == 5
    assert found.losses.shape == (5, STEPS + 1) and np.isfinite(found.losses).all()
    assert (found.falls >= 0.9).all(), found.falls
    assert (found.final < 0.1 * found.mean_color).all(), "a plain image must be beaten as well"
    assert found.images.shape == (5, 3, 64, 64)
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1


@pytest.mark.parametrize("name", ["demo/cnn", "demo/vit"])
def test_the_losses_are_those_of_the_images_that_are_returned(inverted, demo, picture, name):
    found = inverted[name]
    plain = torch.full_like(picture, 0.5)
    for number, path in enumerate(found.layers):
        goal, at = (output_by_hook(demo[name], path, x) for x in (picture, found.images[number : number + 1]))
        gray = output_by_hook(demo[name], path, plain)
        assert found.final[number] == pytest.approx(float(((at - goal) ** 2).sum() / (goal**2).sum()), rel=1e-3)
        expected = float(((gray - goal) ** 2).sum() / (goal**2).sum())
        assert found.mean_color[number] == pytest.approx(expected, rel=1e-3)


def test_shallow_layers_keep_more_of_the_image_than_deep_ones(inverted):
    for found in inverted.values():
        errors = found.table().pixel_rmse
        assert errors.iloc[0] < 0.7 * errors.iloc[-1], errors


def test_tokens_are_inverted_whole_with_the_class_token(demo, picture):
    assert layer_outputs(demo["demo/vit"], picture, ["blocks.2"])["blocks.2"].shape == (1, 65, 128)
    readout = torch.full((1, 65, 1), 0.0)
    readout[:, 0] = 1  # the class token alone: its loss is part of the whole
    with run_up_to(demo["demo/vit"], "blocks.2") as features:
        image = picture.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad((features(image) * readout).square().sum(), image)
    assert bool(gradient.any())


def test_the_same_seed_gives_the_same_images_and_another_seed_others(demo, picture):
    first, second = (invert(demo["demo/cnn"], picture, ["1", "2"], steps=5, seed=3) for _ in range(2))
    other = invert(demo["demo/cnn"], picture, ["1", "2"], steps=5, seed=4)
    assert torch.equal(first.images, second.images) and np.array_equal(first.losses, second.losses)
    assert not torch.equal(first.images, other.images)


def test_a_layer_alone_gives_what_it_gives_among_others(demo, picture):
    together = invert(demo["demo/vit"], picture, ["blocks.0", "blocks.3"], steps=4)
    alone = invert(demo["demo/vit"], picture, "blocks.3", steps=4)
    assert torch.equal(alone.images[0], together.images[1])


def test_nothing_runs_behind_the_layer(demo, picture):
    model, ran = demo["demo/cnn"], []
    handle = model.module[2].register_forward_hook(lambda *rest: ran.append("block 2"))
    with run_up_to(model, "1") as features:
        features(picture)
    handle.remove()
    assert ran == []


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_model_and_random_state_are_left_as_found_whoever_calls(fresh, pictures, caller):
    model = fresh("cnn")
    model.module.train()
    weights = copy.deepcopy(model.module.state_dict())
    before = torch.get_rng_state()
    with caller():
        found = invert(model, pictures(model, 1), steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.module.training and all(torch.equal(weights[k], v) for k, v in model.module.state_dict().items())
    for module in model.module.modules():
        assert not any(getattr(module, name) for name in HOOKS)
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
    assert found.images.grad_fn is None and not found.images.requires_grad
    assert (found.losses[:, -1] < found.losses[:, 0]).all()


class Odd(nn.Module):
    """A model with layers that cannot be inverted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.idle = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ReLU()
        self.dead, self.steps, self.cut = Dead(), Steps(), Cut()
        self.boxes = Boxes()
        self.head = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.stem(images)))
        sum_of_them = self.dead(x) + self.steps(x) + self.cut(x)
        self.boxes(x)
        return self.head((x + 0 * sum_of_them).mean(dim=(2, 3)))


class Dead(nn.Module):
    def forward(self, x):
        return 0 * x


class Steps(nn.Module):
    def forward(self, x):
        return (x > 0.01).float() + 0 * x


class Cut(nn.Module):
    def forward(self, x):
        return x.detach() + 1


class Boxes(nn.Module):
    def forward(self, x):
        return {"boxes": x}


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        ("twice", CaptureError, "runs several times"),
        ("idle", CaptureError, "did not run"),
        ("dead", CaptureError, "only zeros"),
        ("steps", CaptureError, "no gradient leads"),
        ("cut", CaptureError, "no gradient leads"),
        ("boxes", CaptureError, "returns dict"),
        ("stemm", UnknownNameError, "did you mean stem"),
        ("", UnknownNameError, "no layer"),
    ],
)
def test_layers_that_cannot_be_inverted_are_refused_and_leave_no_hook(pictures, layer, error, words):
    torch.manual_seed(0)
    model = ac.wrap_model(Odd(), size=(16, 16), name="odd")
    with pytest.raises(error, match=words):
        invert(model, pictures(model, 1), [layer], steps=2)
    assert not any(getattr(module, name) for module in model.module.modules() for name in HOOKS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": ()}, "no layer"),
        ({"layers": ("1", "1")}, "twice"),
        ({"steps": 0}, "steps 0"),
        ({"rate": float("nan")}, "rate nan"),
        ({"smoothness": -1.0}, "smoothness -1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(demo, picture, change, words):
    with pytest.raises(SpecError, match=words):
        invert(demo["demo/cnn"], picture, **change)


def test_images_are_checked(demo, picture):
    with pytest.raises(SpecError, match="2 images"):
        invert(demo["demo/cnn"], picture.repeat(2, 1, 1, 1))
    with pytest.raises(SpecError, match="need"):
        invert(demo["demo/cnn"], picture[0])


def test_every_tiny_model_can_be_inverted(each_tiny, pictures):
    found = invert(each_tiny, pictures(each_tiny, 1), steps=4, rate=0.002, smoothness=0)
    assert 1 <= len(found.layers) <= 5
    assert (found.losses[:, -1] < found.losses[:, 0]).all(), found.table()


def test_the_figure_shows_every_inversion_with_its_loss(inverted):
    found = inverted["demo/vit"]
    figure = inversion_figure(found, venue="cvpr")
    assert figure.get_figwidth() == 3.25
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles[0] == "image" and len(titles) == 6
    for number, words in enumerate(titles[1:]):
        assert words.replace("\n", " ").startswith(f"{found.layers[number]} loss {found.final[number]:.2g}")
    shown = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(shown, found.images[0].permute(1, 2, 0).numpy())
    curves = figure.axes[-1].lines
    np.testing.assert_array_equal(curves[2].get_ydata(), found.losses[2])


def test_the_command_writes_tables_and_figure(tmp_path):
    Image.fromarray(render_shape(3).image).save(tmp_path / "ring.png")
    asked = ("study", "invert", tmp_path / "ring.png", "-m", "demo/vit", "--layers", "blocks.0, blocks.5", "--steps", 5)
    done = run(*asked, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "inversion.csv")
    assert list(table.layer) == ["blocks.0", "blocks.5"] and (table.final < table.start).all()
    assert len(pd.read_csv(tmp_path / "out" / "curves.csv")) == 12
    assert {"inversion.pdf", "inversion.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    about = json.loads((tmp_path / "out" / "study.json").read_text())
    assert about["settings"]["steps"] == 5 and about["models"]["demo/vit"]["weights_hash"]
    printed = json.loads(run(*asked, "--out", tmp_path / "out", "--json").stdout)
    assert [row["layer"] for row in printed] == ["blocks.0", "blocks.5"]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    missing = run("study", "invert", tmp_path / "none.png", "--out", tmp_path / "out")
    assert missing.returncode == 1 and missing.stderr.startswith("error: ") and missing.stderr.count("\n") == 1
    Image.fromarray(render_shape(3).image).save(tmp_path / "ring.png")
    layer = run("study", "invert", tmp_path / "ring.png", "--layers", "3.7", "--out", tmp_path / "out")
    assert layer.returncode == 1 and "has no layer '3.7'" in layer.stderr
