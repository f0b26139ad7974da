"""Trainings on small settings: what they leave, that a kill changes nothing, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

import attncompare as ac
from attncompare.data.datasets import open_dataset
from attncompare.errors import AttnCompareError, ResultFormatError, SpecError, UnknownNameError
from attncompare.modules import Gated
from attncompare.training.checkpoint import load_state
from attncompare.training.loop import train
from attncompare.training.models import build
from attncompare.training.recipes import AdamPlateau, WarmupCosine
from attncompare.training.run import augmented, load_trained, read_training, train_model
from attncompare.training.spec import TrainSpec

SMALL = {"train_images": 65, "validation_images": 24, "test_images": 30, "size": 16, "epochs": 3, "batch_size": 32}
GATES = {"layers": ["block1", "block3"], "reduction": 8}
TOML = """
train_images = 65
validation_images = 24
test_images = 30
size = 16
epochs = {epochs}
batch_size = 32
squeeze_excite = {{layers = ["block1", "block3"], reduction = 8}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_model(TrainSpec(**SMALL, squeeze_excite=GATES), tmp_path_factory.mktemp("trained") / "here")


def test_a_training_leaves_its_best_weights_history_and_card(trained):
    card, history = trained.card, trained.history
    assert list(history.step) == [2, 4, 6]  # the 65th image would be a batch of one
    best = int(history.accuracy.to_numpy().argmax())
    assert (card["best_epoch"], card["validation_accuracy"]) == (best + 1, history.accuracy[best])
    assert card["images"] == {"train": 65, "validation": 24, "test": 30}
    again = read_training(trained.folder)
    assert again.card == card
    pd.testing.assert_frame_equal(again.history, history)


def test_the_trained_model_comes_back_and_scores_what_the_card_says(trained):
    model = load_trained(trained.folder)
    assert model.size == (16, 16)
    assert sum(p.numel() for p in model.module.parameters()) == trained.card["parameters"]
    shapes = open_dataset("shapes", 30)
    samples = [shapes.load(name) for name in shapes.names]
    guessed = model.forward(ac.load_images([one.image for one in samples], model)).argmax(1).tolist()
    hits = np.mean([guess == one.label for guess, one in zip(guessed, samples, strict=True)])
    assert hits == pytest.approx(trained.card["test_accuracy"])
    assert [gate.layer for gate in model.structure.se_layers] == ["block1.squeeze_excite", "block3.squeeze_excite"]
    assert model.class_name(0) == "disk"


def test_every_command_takes_the_folder_of_a_training_as_a_model(trained, tmp_path):
    name = f"trained/{trained.folder}"
    model, drawn = ac.load_model(name), ac.load_model(f"{name}@random")
    assert (model.name, model.weights_hash) == (name, load_trained(trained.folder).weights_hash)
    assert drawn.weights_hash == ac.load_model(f"{name}@random").weights_hash != model.weights_hash
    assert drawn.weights_hash != ac.load_model(f"{name}@random", seed=1).weights_hash
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    wanted = ("--model", name, "--method", "channel_attention", "--method", "grad_cam", "--out", tmp_path / "maps")
    done = run("explain", tmp_path / "red.png", *wanted)
    assert done.returncode == 0, done.stderr
    done = run("explain", tmp_path / "red.png", "--model", f"trained/{tmp_path}", "--method", "grad_cam")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "holds no finished training" in done.stderr


def test_random_weights_of_a_training_that_began_with_pretrained_ones(tmp_path):
    train_model(TrainSpec(**SMALL | {"size": 64, "epochs": 1}, model="demo/cnn"), tmp_path / "a@b")
    name = f"trained/{tmp_path / 'a@b'}"
    first, plain = (ac.load_model(one).module.state_dict()["0.0.weight"] for one in (name, "demo/cnn@random"))
    moved = tmp_path / "moved"
    (tmp_path / "a@b").rename(moved)
    drawn = ac.load_model(f"trained/{moved}@random").module.state_dict()["0.0.weight"]
    assert torch.equal(drawn, plain)
    assert not torch.equal(drawn, first)


def test_a_second_call_trains_nothing_and_other_settings_are_refused(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.folder.iterdir()}
    ticks = []
    train_model(TrainSpec(**SMALL, squeeze_excite=GATES), trained.folder, progress=ticks.append)
    assert not ticks
    assert {path: path.stat().st_mtime_ns for path in trained.folder.iterdir()} == before
    with pytest.raises(SpecError, match="belongs to another training; choose another folder"):
        train_model(TrainSpec(**SMALL), trained.folder)


def test_a_training_whose_images_were_replaced_is_not_taken_for_done(tmp_path):
    for value, name in ((20, "dark"), (220, "light")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), (value + number,) * 3).save(tmp_path / "set" / name / f"{number}.png")
    spec = TrainSpec(data=str(tmp_path / "set"), size=16, epochs=1)
    card = train_model(spec, tmp_path / "run").card
    assert train_model(spec, tmp_path / "run").card == card
    image = tmp_path / "set" / "dark" / "0.png"
    Image.new("RGB", (16, 16), "red").save(image)
    os.utime(image, ns=(0, 0))  # however coarse the clock of the disk is
    with pytest.raises(SpecError, match="belongs to another training; choose another folder"):
        train_model(spec, tmp_path / "run")


def same(first, second):
    """Whether two folders hold the same training, apart from what the clock said."""
    kept = ["step", "loss", "accuracy", "learning_rate"]
    pd.testing.assert_frame_equal(read_training(first).history[kept], read_training(second).history[kept])
    assert (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()


def test_a_killed_training_ends_as_if_undisturbed(tmp_path):
    spec, epochs = tmp_path / "spec.toml", 8
    spec.write_text(TOML.format(epochs=epochs))
    code = "from attncompare.cli import main; main()"
    command = [sys.executable, "-c", code, "train", str(spec), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = len(load_state(checkpoint).rows)
    assert 1 <= reached < epochs
    ticks = []
    resumed = train_model(
        TrainSpec(**SMALL | {"epochs": epochs}, squeeze_excite=GATES), tmp_path / "killed", progress=ticks.append
    )
    assert ticks[0].done == 2 * reached + 1  # not from the beginning
    train_model(TrainSpec(**SMALL | {"epochs": epochs}, squeeze_excite=GATES), tmp_path / "undisturbed")
    same(resumed.folder, tmp_path / "undisturbed")


def noisy_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def noise(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 3, 2, 2, generator=generator), torch.randint(0, 3, (6,), generator=generator)


@pytest.mark.parametrize(
    "recipe",
    [AdamPlateau(12, patience=0, seed=3), AdamPlateau(12, early_stop=1), WarmupCosine(12, warmup_steps=4)],
    ids=["plateau", "early stop", "cosine"],
)
def test_what_a_model_draws_and_the_schedule_go_on_after_a_stop(tmp_path, recipe):
    scores = {3: 0.1, 6: 0.3, 9: 0.2, 12: 0.2}

    def trained(path, stops):
        for stop in stops:  # None: to the end
            seen, model = [], noisy_net()
            for row in train(
                model, noise, recipe, path, validate=lambda m, seen=seen: scores[3 * len(seen) + 3], every=3
            ):
                seen.append(row)
                if len(seen) == stop:
                    break
        return model.state_dict(), [{k: v for k, v in row.items() if "seconds" not in k} for row in seen]

    whole, rows = trained(tmp_path / "whole", [None])
    parts, again = trained(tmp_path / "parts", [1, 2, None])
    assert rows == again
    assert len(rows) == (3 if recipe == AdamPlateau(12, early_stop=1) else 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    best = load_state(tmp_path / "parts").best
    assert not torch.equal(best["1.weight"], whole["1.weight"])  # those of step 6


def test_training_leaves_the_generator_alone(tmp_path):
    model, state = noisy_net(), torch.get_rng_state()
    list(train(model, noise, AdamPlateau(3), tmp_path / "state"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    bad = lambda step: (torch.full((4, 3, 2, 2), torch.nan), torch.zeros(4, dtype=torch.int64))  # noqa: E731
    with pytest.raises(AttnCompareError, match="the loss is nan at step 1; lower the learning rate"):
        list(train(noisy_net(), bad, AdamPlateau(3), tmp_path / "state"))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ResultFormatError, match=r"checkpoint .* cannot be read: .*; delete it to start over"):
        train_model(TrainSpec(**SMALL), tmp_path)
    with pytest.raises(ResultFormatError, match="holds no finished training"):
        load_trained(tmp_path)


def test_augmentation_shifts_and_flips_by_its_seed():
    images = torch.arange(1, 1 + 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(torch.int32)
    made = augmented(images, torch.Generator().manual_seed(1))
    assert made.shape == images.shape
    assert torch.equal(made, augmented(images, torch.Generator().manual_seed(1)))
    for one, image in zip(made, images, strict=True):
        shifts = [
            (r, c, f)
            for r in range(5)
            for c in range(5)
            for f in (False, True)
            if torch.equal(one, shifted(image, r, c, f))
        ]
        assert len(shifts) == 1


def shifted(image, row, column, flip):
    """One image moved within a frame of two zeros, then mirrored."""
    frame = torch.zeros(3, 20, 20, dtype=image.dtype)
    frame[:, 2:18, 2:18] = image
    part = frame[:, row : row + 16, column : column + 16]
    return part.flip(2) if flip else part


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("tutorial_cnn", "block2", 32),
        ("torchvision/resnet18@random", "layer3", 64),
        ("torchvision/squeezenet1_1@random", "features.12", 64),
        ("timm/mobilenetv3_small_050@random", "blocks.3", 64),
    ],
)
def test_any_model_starts_with_its_classes_its_seed_and_the_same_shared_layers(name, layer, size):
    names = ["a", "b", "c"]
    plain, other = (build(TrainSpec(model=name, size=size, seed=seed), names) for seed in (1, 2))
    gated = build(TrainSpec(model=name, size=size, seed=1, squeeze_excite={"layers": [layer]}), names)
    assert plain.module.eval()(torch.rand(2, 3, size, size)).shape == (2, 3)
    assert [path for path, part in gated.module.named_modules() if isinstance(part, Gated)] == [layer]
    mine, theirs = plain.module.state_dict(), other.module.state_dict()
    drawn = [key for key, value in mine.items() if value.ndim > 1]
    assert not any(torch.equal(mine[key], theirs[key]) for key in drawn)
    shared = {key.replace(f"{layer}.module", layer): value for key, value in gated.module.state_dict().items()}
    assert all(torch.equal(value, shared[key]) for key, value in mine.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epoch": 3}, r"spec: unknown key 'epoch'; known: augment, batch_size, data"),
        ({"squeeze_excite": {"layers": ["a"], "ratio": 4}}, r"unknown key 'squeeze_excite.ratio'"),
        ({"squeeze_excite": {"layers": []}}, r"squeeze_excite.layers: .*at least 1 item"),
        ({"epochs": 0}, r"spec: epochs: .*greater than or equal to 1 \(found 0\)"),
        ({"learning_rate": "fast"}, r"spec: learning_rate: .*\(found 'fast'\)"),
        ({"factor": 1.5}, r"spec: factor: .*less than 1"),
    ],
)
def test_a_spec_names_what_is_wrong(given, said):
    with pytest.raises(SpecError, match=said):
        TrainSpec(**given)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(UnknownNameError, match="unknown layer 'block9'; did you mean block"):
        build(TrainSpec(squeeze_excite={"layers": ["block9"]}), ["a", "b"])


def test_the_command_trains_and_says_what_came_out(tmp_path, trained):
    spec = tmp_path / "spec.toml"
    spec.write_text(TOML.format(epochs=3))
    done = run("train", spec, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"test accuracy {trained.card['test_accuracy']:.4f}" in done.stdout
    same(tmp_path / "run", trained.folder)
    card = json.loads(run("train", spec, "--out", tmp_path / "run", "--json").stdout)
    assert card["spec"]["squeeze_excite"] == GATES
    spec.write_text("epoch = 3")
    done = run("train", spec)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "unknown key 'epoch'" in done.stderr


def test_the_page_on_training_shows_what_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text()
    written, code = (re.search(f"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("toml", "python"))
    assert TrainSpec(**tomllib.loads(written)).squeeze_excite.layers == ("block1", "block2", "block3")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("cat.png")
    names = {}
    exec(code, names)
    assert names["gates"].values.shape == (1, 128)
