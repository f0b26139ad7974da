import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import attncompare as ac
from attncompare import tuning
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.cli import app
from attncompare.cli.running import parse_tuning
from attncompare.errors import SpecError, UnknownNameError
from attncompare.models import same_outputs
from attncompare.tuning import Tuning, applied, check_deviation, tune, untuned


@pytest.fixture(autouse=True)
def as_before():
    before, threads = applied(), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    tune(Tuning(layout=before.layout))


def test_nothing_is_tuned_unless_asked():
    code = "import torch; p = torch.get_float32_matmul_precision(), torch.get_num_threads(); import attncompare.tuning as t;"
    code += (
        "assert p == (torch.get_float32_matmul_precision(), torch.get_num_threads()); assert t.applied() == t.Tuning()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_take_effect_and_are_described():
    tune(Tuning(threads=1, layout="channels_last"))
    torch.set_float32_matmul_precision("high")  # by the caller
    assert torch.get_num_threads() == 1 and json.loads(json.dumps(tuning.describe()))["layout"] == "channels_last"
    with untuned():
        assert torch.get_float32_matmul_precision() == "highest"
        assert applied().layout == "contiguous"
    assert torch.get_float32_matmul_precision() == "high" and applied().layout == "channels_last"


def test_kept_memory_saves_page_faults_in_a_process_of_its_own():
    code = """
import resource, sys, torch
from attncompare.tuning import Tuning, tune
if sys.argv[1] == "tuned":
    assert tune(Tuning(keep_memory=True)).keep_memory
torch.set_num_threads(1)
for _ in range(20): torch.ones(9 << 20)  # 36 MB: more than glibc learns to keep by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): torch.ones(9 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True).stdout)
        for how in ("plain", "tuned")
    }
    assert faults["tuned"] < 100 < faults["plain"]


def test_the_deviation_of_a_batch_is_measured_and_refused_when_large():
    assert check_deviation(lambda images: 1 / 0, torch.rand(1, 3, 8, 8)) == 0  # nothing on: nothing is run
    tune(Tuning(layout="channels_last"))

    def layout(images):
        return torch.full((2,), 0.5 + (1e-7 if applied().layout == "contiguous" else difference))

    difference = 0.0
    assert 0 < check_deviation(layout, torch.rand(2, 3, 16, 16)) < 2e-7
    difference = 0.25
    with pytest.raises(SpecError, match=r"changes scores by 0\.25, more than 1e-05"):
        check_deviation(layout, torch.rand(2, 3, 16, 16))


def test_scores_are_the_same_and_the_settings_stand_in_the_manifest(tmp_path):
    spec = BenchmarkSpec(
        models=("demo/cnn", "demo/vit"), methods=("saliency",), limit=2, timing=False, protocol="grid14"
    )
    plain = run_benchmark(spec, tmp_path / "plain")
    tune(Tuning(layout="channels_last"))
    tuned = run_benchmark(spec, tmp_path / "tuned")
    values = [run.records().sort_values(["model", "measure", "image"])["value"].to_numpy() for run in (plain, tuned)]
    assert abs(values[0] - values[1]).max() < 1e-6
    assert plain.manifest()["environment"]["tuning"]["layout"] == "auto"
    assert tuned.manifest()["environment"]["tuning"]["layout"] == "channels_last"
    assert set(tuned.manifest()["deviation"]) == {"demo/cnn", "demo/vit"}
    assert all(0 <= value <= 1e-5 for value in tuned.manifest()["deviation"].values())


def test_a_deviation_beyond_the_limit_stops_the_run(tmp_path, monkeypatch):
    tune(Tuning(layout="channels_last"))
    monkeypatch.setattr(same_outputs, "TOLERANCE", -1.0)
    spec = BenchmarkSpec(models=("demo/cnn",), methods=("saliency",), limit=1, timing=False)
    with pytest.raises(SpecError, match="leave it off"):
        run_benchmark(spec, tmp_path)


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_must_be_positive(threads):
    with pytest.raises(SpecError, match="at least 1"):
        tune(Tuning(threads=threads))


def test_the_command_line_tunes_its_own_process(tmp_path):
    command = [
        str(Path(sys.executable).with_name("attncompare")),
        "bench",
        "-m",
        "demo/cnn",
        "--method",
        "cam",
        "--limit",
        "1",
        "--no-timing",
    ]
    found = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert ac.Run(tmp_path / "run").manifest()["environment"]["tuning"]["keep_memory"] is True


def test_the_command_line_tunes_its_process_as_asked_and_refuses_other_names(tmp_path):
    arguments = ["bench", "-m", "demo/cnn", "--method", "cam", "--limit", "1", "--no-timing", "--protocol", "rise-fast"]
    arguments += ["--out", str(tmp_path), "--tune", "channels_last"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["environment"]["tuning"] | {"keep_memory": True} == vars(
        Tuning(keep_memory=True, layout="channels_last")
    )
    assert manifest["deviation"]["demo/cnn"] < 1e-5
    with pytest.raises(UnknownNameError, match="unknown setting of --tune 'channels-last'; did you mean channels_last"):
        parse_tuning("channels-last")
    assert parse_tuning("contiguous").layout == "contiguous" and parse_tuning(None).layout == "auto"
