"""What --dry-run counts, against what a run then does; and that a finished run makes no pass at all."""

import json

import pytest
import torch
from typer.testing import CliRunner

import attncompare as ac
from attncompare.benchmark.dry_run import describe, dry_run
from attncompare.benchmark.execution import Execution
from attncompare.benchmark.forwarding import suitable_way
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.cli import app
from attncompare.errors import SpecError
from attncompare.models.adapter import ModelAdapter


def small(**changes):
    values = {"models": ("demo/cnn",), "methods": ("cam", "saliency"), "limit": 4, "chunk_size": 2, "timing": False}
    return BenchmarkSpec(**(values | {"protocol": "rise-fast"} | changes))


@pytest.fixture
def passes(monkeypatch):
    """The number of images that passed a model forward, in a list of one."""
    seen, plain = [0], ModelAdapter.forward

    def counting(self, images):
        seen[0] += len(images)
        return plain(self, images)

    monkeypatch.setattr(ModelAdapter, "forward", counting)
    return seen


def test_a_finished_run_makes_no_pass(tmp_path, passes):
    spec = small(save_maps=True, timing=True, timing_seconds=0.0, repeats=3)
    assert run_benchmark(spec, tmp_path).computed == 6 and passes[0] > 0
    passes[0] = 0
    ac.load_model("demo/cnn")
    probing, passes[0] = passes[0], 0
    again = run_benchmark(spec, tmp_path)
    assert (again.computed, again.reused, passes[0]) == (0, 6, probing)  # not one but to find out what the model is


@pytest.mark.parametrize(
    ("protocol", "metrics"),
    [("rise-fast", ("deletion", "insertion")), ("grid14", ("deletion",)), ("chefer", ("morf", "lerf")), ("rise", ())],
)
def test_scoring_passes_are_those_that_a_run_makes(tmp_path, passes, protocol, metrics):
    spec = small(methods=("center_map", "random_map"), metrics=metrics, protocol=protocol)
    expected = dry_run(spec).models[0]
    passes[0] = 0
    model = ac.load_model("demo/cnn")
    assert not metrics or suitable_way(model) == "channels_last"  # found out with the first score
    probing, passes[0] = passes[0], 0
    run_benchmark(spec, tmp_path)
    assert passes[0] - probing == expected.scoring_forward
    assert (expected.explanation_forward, expected.explanation_backward) == (0, 0)


def test_explaining_passes_are_shared_where_the_run_shares_them():
    one, three = (dry_run(small(methods=names)).models[0] for names in (("cam",), ("cam", "saliency", "layer_cam")))
    assert (one.explanation_forward, one.explanation_backward) == (4, 0)
    assert (three.explanation_forward, three.explanation_backward) == (4, 4)


@pytest.mark.parametrize(
    ("name", "option", "count"),
    [("rise", "n_masks", 37), ("lime", "n_samples", 23), ("kernel_shap", "n_samples", 31), ("smooth_grad", "n_samples", 9),
     ("gradient_shap", "n_samples", 11), ("integrated_gradients", "n_steps", 13), ("occlusion", "window", 0.5)],
)  # fmt: skip
def test_passes_of_methods_that_make_many_are_those_that_they_report(name, option, count):
    spec = small(methods=(name,), options={name: {option: count}}, limit=1)
    found, model = dry_run(spec).models[0], ac.load_model("demo/cnn")
    made = ac.make_explainer(model, name, **{option: count}).explain(torch.rand(1, 3, 64, 64))
    assert (found.explanation_forward, found.explanation_backward) == (made.passes_forward, made.passes_backward)
    assert found.uncounted == []


def test_what_cannot_be_counted_beforehand_is_named():
    found = dry_run(small(methods=("cam", "score_cam", "class_attention"), metrics=("sparseness", "max_sensitivity")))
    (cost,) = found.models
    assert cost.uncounted == ["score_cam", "max_sensitivity"] and cost.refused == ["class_attention"]
    text = describe(found, small(), "runs/x")
    assert "passes not counted: score_cam, max_sensitivity" in text and "at least" in text
    assert "cannot supply: class_attention" in text


def test_done_cells_are_those_in_the_folder(tmp_path):
    run_benchmark(small(methods=("cam",)), tmp_path)
    found = dry_run(small(), tmp_path)
    assert (found.cells, found.done, found.models[0].done) == (4, 2, 2)
    assert dry_run(small(methods=("cam",)), tmp_path).seconds == 0
    assert dry_run(small(seed=1), tmp_path).done == 0
    assert dry_run(small(), tmp_path / "new").done == 0 and not (tmp_path / "new").exists()


def test_a_shard_costs_its_share(tmp_path):
    whole = small(limit=5, chunk_size=1)
    parts = [dry_run(whole, tmp_path, Execution(shard=(i, 2))) for i in (1, 2)]
    assert [part.images for part in parts] == [3, 2]
    assert sum(part.cells for part in parts) == dry_run(whole).cells
    run_benchmark(whole, tmp_path, execution=Execution(shard=(2, 2)))
    assert [dry_run(whole, tmp_path, Execution(shard=(i, 2))).done for i in (1, 2)] == [0, parts[1].cells]
    with pytest.raises(SpecError, match="a timing pass runs alone on its machine"):
        dry_run(small(timing_only=True), tmp_path, Execution(shard=(1, 2)))


def test_the_command_prints_text_or_json_and_runs_nothing(tmp_path):
    arguments = ["bench", "-m", "demo/cnn", "-m", "demo/vit", "--method", "cam", "--limit", "4", "--dry-run"]
    arguments += ["--out", str(tmp_path / "run")]
    text = CliRunner().invoke(app, arguments)
    assert text.exit_code == 0 and "4 images of 'shapes', protocol rise: 2 cells, 0 of them done" in text.stdout
    assert "estimate for what is missing" in text.stdout and "demo/vit cannot supply: cam" in text.stdout
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["cells"] == 2 and {"seconds", "done", "scoring_forward"} <= set(found["models"][0])
    assert not (tmp_path / "run").exists()


def test_a_timing_only_spec_has_no_cells_to_score():
    found = dry_run(small(timing_only=True))
    assert (found.cells, found.seconds) == (0, 0)


def test_a_timing_pass_has_no_cells_to_score_whatever_the_folder_holds(tmp_path):
    run_benchmark(small(methods=("center_map",)), tmp_path)
    found = dry_run(small(methods=("center_map",), timing_only=True), tmp_path)
    assert (found.cells, found.done, found.seconds) == (0, 0, 0.0)
    assert "missing: 0.0 s" in describe(found, small(timing_only=True), tmp_path)
