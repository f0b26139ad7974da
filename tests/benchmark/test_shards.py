"""Shards of one plan in one folder come to the same as one run."""

import json
import sys

import numpy as np
import pytest

from attncompare.benchmark.execution import Execution
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.errors import SpecError, UnknownNameError

SPEC = BenchmarkSpec(
    models=("demo/cnn", "demo/vit"), methods=("saliency", "cam"), metrics=("deletion",), limit=5, chunk_size=2,
    protocol="rise-fast", timing=False,
)  # fmt: skip


@pytest.mark.parametrize("count", [2, 4])
def test_the_union_of_all_shards_is_one_run(tmp_path, count):
    whole = run_benchmark(SPEC, tmp_path / "whole")
    shards = [run_benchmark(SPEC, tmp_path / "run", execution=Execution(shard=(i + 1, count))) for i in range(count)]
    assert not (tmp_path / "run" / "run.json").exists()
    assert sum(shard.computed for shard in shards) == whole.computed == 12
    assert all(shard.reused == 0 for shard in shards)
    united = run_benchmark(SPEC, tmp_path / "run")
    assert (united.computed, united.reused) == (0, 12)
    assert united.manifest()["keys"] == whole.manifest()["keys"]
    mine, plain = united.records(), whole.records()
    same = ["model", "method", "image", "target", "measure", "protocol", "status", "detail", "key"]
    assert mine[same].equals(plain[same])
    np.testing.assert_allclose(mine.value, plain.value, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.array(mine.curve.dropna().tolist()), np.array(plain.curve.dropna().tolist()))


def test_every_shard_describes_itself_and_leaves_the_others_alone(tmp_path):
    first = run_benchmark(SPEC, tmp_path, execution=Execution(shard=(1, 2)))
    before = (tmp_path / "shards" / "1-of-2.json").read_bytes()
    second = run_benchmark(SPEC, tmp_path, execution=Execution(shard=(2, 2)))
    assert (tmp_path / "shards" / "1-of-2.json").read_bytes() == before
    assert json.loads(before) == first.manifest()
    assert set(first.records().image) == {f"shapes-test-{i:05d}" for i in (0, 1, 4)} | {""}
    assert set(second.records().image) == {f"shapes-test-{i:05d}" for i in (2, 3)} | {""}
    assert not set(first.manifest()["keys"]) & set(second.manifest()["keys"])


def test_a_shard_does_not_touch_the_description_of_a_finished_run(tmp_path):
    run_benchmark(SPEC, tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    again = run_benchmark(SPEC, tmp_path, execution=Execution(shard=(2, 3)))
    assert (again.computed, again.reused) == (0, 4)
    assert (tmp_path / "run.json").read_bytes() == before


def test_shards_do_not_time_and_the_run_that_unites_them_does(tmp_path):
    spec = SPEC.model_copy(update={"limit": 1, "timing": True, "repeats": 3, "timing_seconds": 0.0})
    shard = run_benchmark(spec, tmp_path, execution=Execution(shard=(1, 1)))
    assert not shard.records().measure.str.startswith("latency").any()
    united = run_benchmark(spec, tmp_path)
    timed = united.records().query("measure == 'latency_median'")
    assert set(timed.method) == {"saliency", "cam"} and united.reused == shard.computed
    with pytest.raises(SpecError, match="leave out --shard"):
        run_benchmark(spec.model_copy(update={"timing_only": True}), tmp_path, execution=Execution(shard=(1, 1)))


def test_progress_of_a_shard_counts_its_own_images(tmp_path):
    ticks = []
    run_benchmark(SPEC, tmp_path, progress=ticks.append, execution=Execution(shard=(2, 2)))
    assert {tick.total for tick in ticks} == {2 * 2 * 2} and ticks[-1].done == 8


def test_a_shard_beyond_the_last_chunk_has_nothing_to_do(tmp_path):
    empty = run_benchmark(SPEC, tmp_path, execution=Execution(shard=(9, 9)))
    assert (empty.computed, empty.manifest()["keys"]) == (0, [])
    assert empty.manifest()["finished"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"engine": "slurm"}, UnknownNameError, "unknown engine 'slurm'; known: local, ray"),
        ({"shard": (3, 2)}, SpecError, "shard 3/2: the first number must be 1 to 2"),
        ({"engine": "ray", "workers": 0}, SpecError, "workers must be at least 1, not 0"),
        ({"engine": "ray", "gpus_per_worker": -1.0}, SpecError, "gpus-per-worker must be 0 or more"),
        ({"engine": "ray", "shard": (1, 2)}, SpecError, "leave out --shard"),
        ({"workers": 2}, SpecError, "workers is a setting of Ray; add --engine ray"),
        ({"address": "auto"}, SpecError, "address is a setting of Ray"),
    ],
)
def test_settings_that_make_no_sense_say_what_to_change(wrong, error, message):
    with pytest.raises(error, match=message):
        Execution(**wrong)


def test_without_ray_its_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'attncompare\[ray\]'"):
        run_benchmark(SPEC, tmp_path / "run", execution=Execution("ray"))
    assert not (tmp_path / "run").exists()
