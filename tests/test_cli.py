import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import run
from PIL import Image

import attncompare as ac
from attncompare.benchmark.store import ResultStore
from attncompare.errors import SpecError


def photo(path, size=(80, 60)):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bench", "-m", "demo/cnn", "--method", "gradcam"], "unknown method 'gradcam'; did you mean grad_cam"),
        (["bench", "-m", "demo/nothing"], "unknown model 'demo/nothing'"),
        (["bench", "-m", "cnn"], "unknown model 'cnn'; a model is one of"),
        (["bench", "-m", "demo/cnn", "--metric", "deletoin"], "unknown metric 'deletoin'; did you mean deletion"),
        (["bench", "-m", "demo/cnn", "--protocol", "ries"], "unknown protocol 'ries'"),
        (["bench", "-m", "demo/cnn", "--option", "grad_cam.layr=x"], "unknown option of grad_cam 'layr'"),
        (["bench", "-m", "demo/cnn", "--option", "grad_cam"], "write method.option=value"),
        (["bench", "-m", "demo/cnn", "--data", "nowhere"], "data 'nowhere' is neither"),
        (["bench", "-m", "demo/cnn", "--limit", "0"], "limit"),
        (["bench", "-m", "demo/cnn", "--target", "cat"], 'write argmax, label, embedding, a class index, "class:NAME"'),
        (["bench", "-m", "demo/cnn", "--target", "text:a cat"], "demo/cnn has no text encoder"),
        (["bench", "-m", "demo/cnn", "--target", "99"], "out of range: demo/cnn has classes 0 to"),
        (["bench", "-m", "demo/cnn", "-m", "demo/cnn"], "listed twice"),
        (["bench", "-m", "demo/cnn", "--shard", "a/b"], "shard 'a/b': write i/n, such as 1/4"),
        (["bench", "-m", "demo/cnn", "--shard", "3/2"], "shard 3/2: the first number must be 1 to 2"),
        (["bench", "-m", "demo/cnn", "--shard", "0/2"], "shard 0/2: the first number must be 1 to 2"),
        (["bench", "-m", "demo/cnn", "--engine", "slurm"], "unknown engine 'slurm'; known: local, ray"),
        (["bench", "-m", "demo/cnn", "--engine", "ray", "--workers", "0"], "workers must be at least 1, not 0"),
        (["bench", "-m", "demo/cnn", "--workers", "2"], "workers is a setting of Ray; add --engine ray"),
        (["bench", "-m", "demo/cnn", "--engine", "ray", "--shard", "1/2"], "leave out --shard, or use it with"),
        (["bench", "-m", "demo/cnn", "--shard", "1/2", "--timing-only"], "leave out --shard, or --timing-only"),
        (["bench"], "models"),
        (["bench", "--color", "red"], "--color"),
        (["explain", "nothing.png"], "no such image file"),
        (["report", "nowhere"], "run.json"),
        (["list", "model"], "did you mean models"),
        (["doctor", "timm/vit_tinny_patch16_224@random"], "did you mean"),
    ],
)
def test_wrong_words_give_one_clear_line_and_exit_1(arguments, expected, tmp_path):
    found = run(*arguments, *(["--out", tmp_path / "run"] if arguments[0] == "bench" else []))
    assert found.returncode == 1
    assert expected in found.stderr
    assert found.stderr.strip().count("\n") == 0, found.stderr
    assert not (tmp_path / "run" / "records").exists()


@pytest.mark.parametrize(
    "command", ["demo", "explain", "bench", "report", "figure", "table", "query", "list", "doctor"]
)
def test_every_command_shows_an_example(command):
    found = run(command, "--help")
    assert found.returncode == 0
    assert f"attncompare {command}" in found.stdout


FEW_PASSES = (
    "integrated_gradients.n_steps=2", "occlusion.window=0.5", "rise.n_masks=4", "smooth_grad.n_samples=2",
    "gradient_shap.n_samples=2", "lime.n_samples=8", "kernel_shap.n_samples=8", "score_cam.internal_batch_size=32",
)  # fmt: skip


def test_explain_needs_nothing_but_an_image_and_models(tmp_path):
    image = photo(tmp_path / "cat.png")
    found = run(
        *("explain", image, "--model", "timm/vit_tiny_patch16_224@random", "--model", "torchvision/resnet18@random"),
        *("--method", "all", "--out", tmp_path / "maps"),
        *(word for option in FEW_PASSES for word in ("--option", option)),
    )
    records = ResultStore(tmp_path / "maps").read()
    refused = records[(records.status == "unsupported") & (records.model == "torchvision/resnet18@random")]
    assert set(refused.method) >= {"class_attention", "attention_rollout", "gradient_rollout", "channel_attention"}
    assert refused.detail.str.contains("no softmax attention between image positions").any()
    drawn = {path.name.split("-")[-1] for path in (tmp_path / "maps" / "overlays").rglob("*.png")}
    assert {"grad_cam.png", "attention_rollout.png", "class_attention.png", "cam.png", "saliency.png"} <= drawn
    assert (tmp_path / "maps" / "comparison.pdf").stat().st_size > 10_000
    # The channel mean of an untrained LayerNorm is zero: those that read it are refused as such; nothing failed.
    for name in ("activation", "eigen_cam"):
        assert "cancel to zero" in " ".join(records[records.method == name].detail)
    assert not (records.status == "failed").any() and found.returncode == 0, found.stderr


def test_explain_works_on_a_folder_written_by_save_pretrained(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
                       patch_size=8, num_labels=5)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    found = run(
        *("explain", photo(tmp_path / "a.png"), "--model", f"hf/{tmp_path / 'model'}", "--method", "gradient_rollout"),
        *("--method", "grad_cam", "--out", tmp_path / "maps"),
    )
    assert found.returncode == 0, found.stderr
    assert len(list((tmp_path / "maps" / "overlays").rglob("*.png"))) == 2


def test_explain_reports_the_convergence_delta(tmp_path):
    arguments = ["explain", photo(tmp_path / "cat.png"), "--model", "demo/cnn", "--out", tmp_path / "maps"]
    found = run(*arguments, "--method", "integrated_gradients", "--option", "integrated_gradients.n_steps=8")
    assert found.returncode == 0, found.stderr
    records = ResultStore(tmp_path / "maps").read()
    (delta,) = records[records.measure == "convergence_delta"].value
    assert f"convergence_delta of integrated_gradients on demo/cnn, cat.png: {delta:.3g}" in found.stdout
    model = ac.load_model("demo/cnn")
    images = ac.load_images([tmp_path / "cat.png"], model)
    explained = ac.make_explainer(model, "integrated_gradients", n_steps=8).explain(images)
    assert delta == pytest.approx(float(explained.detail["convergence_delta"]), abs=1e-6)
    assert '"convergence_delta"' in (tmp_path / "maps" / "report.html").read_text(encoding="utf-8")


def test_an_unreadable_image_is_a_record_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(folder / "good.png")
    (folder / "broken.png").write_bytes(b"not an image")
    arguments = ("bench", "-m", "demo/cnn", "--method", "cam", "--method", "class_attention", "--data", folder)
    found = run(*arguments, "--protocol", "rise-fast", "--no-timing", "--out", tmp_path / "run")
    assert found.returncode == 3
    records = ResultStore(tmp_path / "run").read()
    broken = records[(records.image == "broken.png") & (records.method == "cam")]
    assert set(broken.status) == {"failed"} and broken.detail.str.contains("cannot be read as an image").all()
    good = records[(records.image == "good.png") & (records.method == "cam")]
    assert set(good.status) == {"ok"} and set(good.measure) == {"deletion", "insertion", "target_score"}
    assert set(records[records.method == "class_attention"].status) == {"unsupported"}


def test_nothing_but_unsupported_pairs_exits_1(tmp_path):
    found = run("bench", "-m", "demo/cnn", "--method", "class_attention", "--limit", "1", "--out", tmp_path / "run")
    assert found.returncode == 1
    assert "no softmax attention between image positions" in found.stderr


def test_a_second_call_computes_nothing_and_a_changed_field_only_its_cells(tmp_path):
    arguments = [
        "bench",
        "-m",
        "demo/cnn@random",
        "--method",
        "cam",
        "--method",
        "saliency",
        "--limit",
        "2",
        "--no-timing",
    ]
    assert "2 cells computed, 0 reused" in run(*arguments, "--out", tmp_path).stdout
    first = ResultStore(tmp_path).read()
    assert "0 cells computed, 2 reused" in run(*arguments, "--out", tmp_path).stdout
    pd.testing.assert_frame_equal(first, ResultStore(tmp_path).read())
    changed = [*arguments, "--seed", "1"]
    assert "2 cells computed, 0 reused" in run(*changed, "--out", tmp_path).stdout
    more = [*arguments, "--method", "layer_cam"]
    assert "1 cells computed, 2 reused" in run(*more, "--out", tmp_path).stdout


def test_bench_reads_toml_and_refuses_unknown_keys(tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text('models = ["demo/cnn"]\nmethods = ["cam"]\nlimit = 1\ntiming = false\n')
    assert run("bench", spec, "--out", tmp_path / "run").returncode == 0
    spec.write_text('models = ["demo/cnn"]\nmethod = ["cam"]\n')
    found = run("bench", spec, "--out", tmp_path / "run")
    assert found.returncode == 1 and "unknown key 'method'" in found.stderr


def test_timing_is_recorded_with_passes(tmp_path):
    arguments = (
        "--method",
        "integrated_gradients",
        "--method",
        "center_map",
        "--option",
        "integrated_gradients.n_steps=4",
    )
    found = run("bench", "-m", "demo/cnn@random", *arguments, "--timing-only", "--out", tmp_path, "--json")
    assert found.returncode == 0, found.stderr
    rows = {(row["method"], row["measure"]): row["mean"] for row in json.loads(found.stdout)}
    assert rows["integrated_gradients", "passes_backward"] == 4
    assert rows["integrated_gradients", "latency_ratio"] > rows["center_map", "latency_ratio"]
    assert rows["center_map", "passes_forward"] == 0
    assert rows["integrated_gradients", "latency_n"] >= 10


def test_tables_and_figures_come_from_the_run_folder(tmp_path):
    arguments = ("--method", "cam", "--method", "center_map", "--limit", "2", "--save-maps", "--out", tmp_path)
    assert run("bench", "-m", "demo/cnn", *arguments).returncode == 0
    assert r"\toprule" in run("table", tmp_path, "tex").stdout
    assert run("table", tmp_path, "csv").stdout.startswith("model,method,measure")
    for kind in ("grid", "curves", "bars", "cost"):
        found = run("figure", tmp_path, kind, "-o", tmp_path / f"{kind}.pdf", "--venue", "neurips")
        assert found.returncode == 0, found.stderr
        first = (tmp_path / f"{kind}.pdf").read_bytes()
        run("figure", tmp_path, kind, "-o", tmp_path / "again.pdf", "--venue", "neurips")
        assert first == (tmp_path / "again.pdf").read_bytes()


@pytest.mark.parametrize(("source", "shown"), [("", ""), ("0123456789ab+dirty", " (commit 0123456789ab+dirty)")])
def test_the_version_is_printed_with_the_commit_where_there_is_one(monkeypatch, source, shown):
    monkeypatch.setattr("attncompare.cli.commit", lambda: source)
    found = run("--version")
    assert (found.returncode, found.stdout, found.stderr) == (0, f"attncompare {ac.__version__}{shown}\n", "")


def test_the_version_is_printed_without_torch():
    code = "import sys; from attncompare.cli import main; sys.argv = ['attncompare', '--version']; main()"
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"attncompare {ac.__version__}") and done.stdout.endswith("\nFalse\n")


def test_the_doctor_says_which_versions_and_settings_are_in_force(monkeypatch):
    monkeypatch.setattr("attncompare.environment.commit", lambda: "0123456789ab")
    found = json.loads(run("doctor", "--json").stdout)
    assert (found["versions"]["attncompare"], found["commit"]) == (ac.__version__, "0123456789ab")
    assert found["tuning"]["layout"] == "auto"
    assert f"  attncompare: {ac.__version__}\n" in run("doctor").stdout


def test_list_and_doctor_print_json(tmp_path):
    assert [row["name"] for row in json.loads(run("list", "models", "demo/*", "--json").stdout)] == [
        "demo/cnn", "demo/se_cnn", "demo/vit",
    ]  # fmt: skip
    rows = json.loads(run("list", "methods", "attention_rollout", "--json").stdout)
    assert any("attention_rollout.head_fusion" in option for option in rows[0]["options"])
    found = json.loads(run("doctor", "demo/vit", "--json").stdout)
    assert found["tokens"] == {"prefix": 1, "grid": [8, 8], "class_token": 0, "length": 65}
    assert "gradient_rollout" in found["methods"] and "classifier_weights" in found["missing"]


@pytest.mark.parametrize(
    ("pattern", "name", "about"),
    [
        ("timm/vit_tiny_patch16_22*", "timm/vit_tiny_patch16_224", "features class-attention rollout"),
        ("timm/ghostnet_1*", "timm/ghostnet_100", "like ghostnet_050: features gates"),
        ("torchvision/alex*", "torchvision/alexnet", "features"),
        ("demo/cnn", "demo/cnn", ""),
    ],
    ids=["swept", "of a swept file", "torchvision", "not swept"],
)
def test_list_models_says_what_each_can_supply(pattern, name, about):
    rows = {row["name"]: row["about"] for row in json.loads(run("list", "models", pattern, "--json").stdout)}
    assert rows[name] == about
    assert any(line.split(None, 1) == [name, *filter(None, [about])] for line in lines(run("list", "models", pattern)))


METHODS = [row["name"] for row in json.loads(run("list", "methods", "--json").stdout)]


def test_list_methods_names_them_all_and_says_which_are_blind_to_the_target():
    rows = {row["name"]: row["about"] for row in json.loads(run("list", "methods", "--json").stdout)}
    assert list(rows) == ac.list_methods() == METHODS
    blind = {name for name, about in rows.items() if about.endswith("Does not depend on the target.")}
    assert blind >= {"class_attention", "attention_rollout", "activation", "eigen_cam", "random_map"}
    assert not blind & {
        "ablation_cam",
        "attn_lrp",
        "cam",
        "finer_cam",
        "legrad",
        "lime",
        "score_cam",
        "transformer_lrp",
    }


@pytest.mark.parametrize("name", METHODS)
def test_list_methods_with_a_name_shows_default_meaning_and_reference(name):
    from attncompare.methods._base import methods

    method = methods.get(name)
    found = run("list", "methods", name)
    shown, *options = [line.strip() for line in lines(found)]
    assert shown.startswith(f"{name}  {method.summary}")
    assert f"[{method.reference}]" in shown
    assert f"needs: {', '.join(method.needs)}" in shown
    assert len(options) == len(method.options)
    for line, option in zip(options, method.options, strict=True):
        assert line.startswith(f"{name}.{option.name} = {json.dumps(option.default)}")
        assert line.endswith(f": {option.meaning}")
        assert all(repr(choice) in line for choice in option.choices or ())
    assert json.loads(run("list", "methods", name, "--json").stdout)[0]["options"] == options


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("lime.n_samples=1", "lime.n_samples must lie between 2 and 1e+06, not 1"),
        ("kernel_shap.n_segments=1", "kernel_shap.n_segments must lie between 2 and 10000, not 1"),
        ("finer_cam.rivals=two", "finer_cam.rivals must be an int, not 'two'"),
        ("deep_lift.baseline=2", "deep_lift.baseline must lie between 0 and 1, not 2"),
        ("attn_lrp.gamma=1", "unknown option of attn_lrp 'gamma'"),
        ("score_cam.internal_batch_size=0", "score_cam.internal_batch_size must be positive, not 0"),
        ("legrad.block=1", "method legrad has no options"),
    ],
)
def test_a_wrong_option_gives_one_clear_line_before_anything_runs(option, expected, tmp_path):
    method = option.partition(".")[0]
    found = run("bench", "-m", "demo/cnn", "--method", method, "--option", option, "--out", tmp_path / "run")
    assert found.returncode == 1
    assert expected in found.stderr
    assert found.stderr.strip().count("\n") == 0, found.stderr
    assert not (tmp_path / "run" / "records").exists()


def lines(done):
    return [line.rstrip() for line in done.stdout.splitlines()]


def test_every_measured_model_exists():
    measured = (Path(ac.__file__).parent / "capabilities.csv").read_text().splitlines()[1:]
    names = [line.partition(",")[0] for line in measured]
    assert names and set(names) <= set(ac.list_models())
    assert names == sorted(names)


def test_shards_of_a_command_are_united_by_the_command_without_shard(tmp_path):
    arguments = ["bench", "-m", "demo/cnn", "--method", "cam", "--limit", "2", "--no-timing", "--metric", "deletion"]
    arguments += ["--protocol", "rise-fast", "--out", tmp_path]
    shards = [run(*arguments, "--shard", f"{i}/2") for i in (1, 2)]
    assert [shard.returncode for shard in shards] == [0, 0]
    told = [json.loads(shard.stdout) for shard in shards]
    assert told == [
        {"shard": "1/2", "computed": 1, "reused": 0, "failed": 0},
        {"shard": "2/2", "computed": 0, "reused": 0, "failed": 0},  # two images are one chunk
    ]
    assert "without --shard unites them" in shards[0].stderr
    assert "0 cells computed, 1 reused" in run(*arguments).stdout


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job in the background ignores it
    code = heard + "from attncompare.cli import main; main()"
    arguments = [
        "bench",
        "-m",
        "demo/cnn",
        "--method",
        "cheap",
        "--limit",
        "2000",
        "--no-timing",
        "--out",
        str(tmp_path),
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(Path(tmp_path).glob("records/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "Go on with: attncompare bench -m demo/cnn" in errors
    assert len(ResultStore(Path(tmp_path)).read()) > 0


@pytest.mark.parametrize(
    ("words", "methods"),
    [((), ("cheap",)), (("--method", "all"), ("all",)), (("--method", "cam"), ("cam",))],
)
def test_a_timing_pass_takes_the_cheap_methods_unless_told_otherwise(monkeypatch, tmp_path, words, methods):
    asked = []

    def stop(spec, out, execution, tuning):
        asked.append(spec)
        raise SpecError("seen")

    monkeypatch.setattr(sys.modules["attncompare.cli.bench"], "run_spec", stop)
    run("bench", "-m", "demo/cnn", "--timing-only", *words, "--out", tmp_path)
    assert [spec.methods for spec in asked] == [methods]
