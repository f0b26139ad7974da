"""Trainings with and without channel attention: fair pairs, real gates, and channels that matter where they must."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from scipy import stats
from torch import nn

import attncompare as ac
from attncompare.errors import SpecError, UnknownNameError
from attncompare.models.preprocessing import Preprocessing
from attncompare.modules import insert
from attncompare.reporting.studies.channel_attention import causes_figure, gates_figure, training_figure
from attncompare.studies.gate_comparison import MEASURES, GateComparison, _measured
from attncompare.studies.gate_effects import ablation
from attncompare.training.data import Part, TrainingData, open_training_data
from attncompare.training.run import Training, batches, load_trained

SMALL = {"train_images": 64, "validation_images": 32, "test_images": 40, "size": 16, "epochs": 2, "batch_size": 32}
TOML = "\n".join(f"{name} = {value}" for name, value in SMALL.items())
DRAWS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder):
    return ac.studies.channel_attention(ac.TrainSpec(**SMALL), seeds=3, out=folder, draws=DRAWS)


def test_there_is_a_pair_per_seed_and_the_gates_parameters_are_the_difference(study):
    assert study.runs[["seed", "gated"]].values.tolist() == [[s, g] for s in range(3) for g in (False, True)]
    widths = [(32, 2), (64, 4), (128, 8)]
    added = sum(2 * channels * hidden + hidden + channels for channels, hidden in widths)
    row = study.table().set_index("measure").loc["parameters"]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (added, added, added)
    assert np.isnan(row["p"])


def test_both_of_a_pair_see_the_same_batches():
    data = open_training_data(ac.TrainSpec(**SMALL))
    how = Preprocessing(size=(16, 16))
    specs = [ac.TrainSpec(**SMALL, seed=5, squeeze_excite=gates) for gates in (None, {"layers": ["block1"]})]
    plain, gated = (batches(spec, data.fitted(how).train, how, torch.device("cpu")) for spec in specs)
    for step in (0, 1, 2, 3):
        assert all(torch.equal(a, b) for a, b in zip(plain(step), gated(step), strict=True))
    assert not torch.equal(plain(0)[1], plain(2)[1])  # another order in the second epoch


def test_gates_are_the_sigmoids_outputs_averaged_class_by_class(study, folder):
    model = load_trained(folder / "seed-1" / "with")
    seen = {}
    for layer in ("block1", "block3"):
        sigmoid = model.module.get_submodule(f"{layer}.squeeze_excite.sigmoid")
        sigmoid.register_forward_hook(lambda m, i, output, layer=layer: seen.update({layer: output}))
    images, labels = open_training_data(study.spec).fitted(model.source.preprocessing).test.batch(range(40))
    with torch.no_grad():
        model.forward(images.float() / 255)
    of_seed = study.gates[study.gates["seed"] == 1]
    for layer, gates in seen.items():
        for label in np.unique(labels):
            rows = of_seed[(of_seed["layer"] == layer) & (of_seed["class"] == label)].sort_values("channel")
            np.testing.assert_allclose(rows["gate"], gates[labels == label].double().mean(0), atol=1e-6)


def test_channels_at_zero_are_those_of_the_highest_mean_gate(study, folder):
    model = load_trained(folder / "seed-2" / "with")
    data = open_training_data(study.spec).fitted(model.source.preprocessing)
    part = model.module.get_submodule("block2.squeeze_excite")
    gates = []
    part.sigmoid.register_forward_hook(lambda m, i, output: gates.append(output))
    with torch.no_grad():
        model.forward(data.validation.batch(range(32))[0].float() / 255)
        images, labels = data.test.batch(range(40))
        whole = (model.forward(images.float() / 255).argmax(1) == labels).double().mean()
        highest = gates[0].mean(0).topk(16).indices
        part.register_forward_hook(lambda m, i, output: output.index_fill(1, highest, 0.0))
        without = (model.forward(images.float() / 255).argmax(1) == labels).double().mean()
    rows = study.ablation[(study.ablation["seed"] == 2) & (study.ablation["layer"] == "block2")]
    found = rows[rows["channels"] == "highest"].iloc[0]
    assert (found["zeroed"], found["of"]) == (16, 64)
    assert found["accuracy"] == pytest.approx(float(without))
    assert found["drop"] == pytest.approx(float(whole - without))
    assert rows["channels"].value_counts().to_dict() == {"random": DRAWS, "highest": 1, "lowest": 1}


class Colors(nn.Module):
    """Says which of two colors an image has; channels 0 and 1 carry them, the gates let these through."""

    def __init__(self):
        super().__init__()
        self.features, self.linear = nn.Conv2d(3, 8, 1, bias=False), nn.Linear(8, 2, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()[[0, 1], [0, 2]] = 1.0
            self.linear.weight.zero_()[[0, 1], [0, 1]] = 1.0

    def forward(self, images):
        return self.linear(self.features(images).mean((2, 3)))


def test_where_the_gates_favor_what_decides_its_loss_costs_most():
    torch.manual_seed(0)
    net = insert(Colors(), ["features"], reduction=1, size=(8, 8))
    added = net.get_submodule("features").squeeze_excite
    with torch.no_grad():
        added.expand.weight.mul_(0.1)
        added.expand.bias.copy_(torch.tensor([4.0, 4, -4, -4, -4, -4, -4, -4]))
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0, :, :, 0] = pixels[1, :, :, 2] = 200
    part = Part(np.array([0, 1] * 10), lambda number: (pixels[number % 2], number % 2))
    data = TrainingData(("red", "blue"), part, part, part, "")
    model = ac.wrap_model(net, size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), name="colors")
    drops = ablation(model, data, ["features"], share=0.25, draws=40, seed=0).groupby("channels")["drop"].mean()
    assert drops["highest"] == 0.5
    assert drops["lowest"] == 0.0
    assert 0 < drops["random"] < 0.3


def made_up(tmp_path, accuracies, gated):
    history = pd.DataFrame({"accuracy": accuracies, "seconds": [2.0, 4.0, 7.0], "cpu_seconds": [1.0, 2.0, 3.5]})
    card = {"validation_accuracy": max(accuracies), "test_accuracy": 0.5, "parameters": 10 + gated}
    return Training(tmp_path, card, history)


def test_time_to_equal_accuracy_ends_at_the_lower_of_the_two_best(tmp_path, monkeypatch):
    pair = (made_up(tmp_path, [0.2, 0.5, 0.4], 0), made_up(tmp_path, [0.5, 0.6, 0.7], 1))
    monkeypatch.setattr("attncompare.studies.gate_comparison._latencies", lambda pair: [1.0, 2.0])
    rows = _measured(pair).set_index("gated")
    assert rows["epochs_to_equal"].to_dict() == {False: 2, True: 1}
    assert rows["seconds_to_equal"].to_dict() == {False: 4.0, True: 2.0}
    assert rows["cpu_seconds_to_equal"].to_dict() == {False: 2.0, True: 1.0}
    assert rows["seconds_per_epoch"].tolist() == [2.0, 2.0]


def invented(without, gated):
    """A study whose every measure has these values."""
    rows = [
        {"seed": seed, "gated": which, **dict.fromkeys(MEASURES, value)}
        for which, values in ((False, without), (True, gated))
        for seed, value in enumerate(values)
    ]
    empty = pd.DataFrame()
    return GateComparison(ac.TrainSpec(), (), pd.DataFrame(rows), empty, empty, empty)


def test_intervals_and_p_are_students_over_seeds():
    without, gated = np.array([0.5, 0.6, 0.55, 0.7]), np.array([0.6, 0.62, 0.6, 0.78])
    row = invented(without, gated).table().set_index("measure").loc["test_accuracy"]
    test = stats.ttest_rel(gated, without)
    assert row["p"] == pytest.approx(test.pvalue)
    assert row["difference"] == pytest.approx((gated - without).mean())
    half = stats.t.ppf(0.975, 3) * (gated - without).std(ddof=1) / 2
    assert row["difference_low"] == pytest.approx((gated - without).mean() - half)
    assert row["difference_high"] == pytest.approx((gated - without).mean() + half)
    assert row["ratio"] == pytest.approx(np.prod(gated / without) ** 0.25)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]


def test_a_second_call_trains_nothing_and_finds_the_same(study, folder):
    weights = sorted(folder.glob("*/*/weights.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    done = []
    again = ac.studies.channel_attention(
        ac.TrainSpec(**SMALL), seeds=[0, 1, 2], out=folder, draws=DRAWS, progress=lambda tick: done.append(tick.what)
    )
    assert not [what for what in done if "epoch" in what]
    assert [path.stat().st_mtime_ns for path in weights] == before and len(before) == 6
    pd.testing.assert_frame_equal(again.gates, study.gates)
    pd.testing.assert_frame_equal(again.ablation, study.ablation)
    exact = ["test_accuracy", "validation_accuracy", "seconds_per_epoch", "seconds_to_equal"]
    pd.testing.assert_frame_equal(again.runs[exact], study.runs[exact])


def test_the_figures_show_every_training_layer_and_class(study):
    left, right = training_figure(study).axes
    assert len(left.lines) == len(right.lines) == 6
    panels = gates_figure(study, "cvpr").axes
    assert [len(axes.get_yticklabels()) for axes in panels[:3]] == [8] * 3
    assert [axes.images[0].get_array().shape[1] for axes in panels[:3]] == [32, 64, 128]
    for axes in causes_figure(study).axes:
        assert [len(line.get_xdata()) for line in axes.lines[1:4]] == [DRAWS, 1, 1]


def test_the_command_writes_tables_and_figures(study, folder, tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(TOML)
    done = run("study", "channel-attention", spec, "--draws", DRAWS, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "3 seeds; p of the paired t test" in done.stdout
    assert {"training.pdf", "gates.png", "causes.pdf", "study.json"} <= {path.name for path in folder.iterdir()}
    table = pd.read_csv(folder / "channel_attention.csv")
    assert table["measure"].tolist() == list(MEASURES)
    settings = json.loads((folder / "study.json").read_text())["settings"]
    assert settings["squeeze_excite"]["layers"] == ["block1", "block2", "block3"]


@pytest.mark.parametrize(
    ("given", "how", "kind", "said"),
    [
        ({}, {"seeds": 2}, SpecError, "2 seeds: at least 3 are needed"),
        ({}, {"seeds": [1, 1, 1]}, SpecError, "1 seeds: at least 3 are needed"),
        ({"model": "demo/cnn@random"}, {}, SpecError, "say where the gates of demo/cnn@random go"),
        ({"squeeze_excite": {"layers": ["block7"]}}, {}, UnknownNameError, "unknown layer 'block7'"),
        ({}, {"ablated": 1.0}, SpecError, "a share between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(given, how, kind, said, tmp_path):
    with pytest.raises(kind, match=said):
        ac.studies.channel_attention(ac.TrainSpec(**SMALL | given), out=tmp_path, **how)
