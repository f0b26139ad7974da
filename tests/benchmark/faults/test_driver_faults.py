"""The one process of a local run is killed, or stopped with Ctrl-C; shards run at the same time."""

import re
import shlex
import signal
import time

import pytest

from attncompare.benchmark.run import Run

pytestmark = pytest.mark.slow


def finished_cells(folder):
    return len(list(folder.glob("records/*.parquet")))


def wait_for_cells(process, folder, count):
    deadline = time.monotonic() + 300
    while finished_cells(folder) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def test_a_killed_run_goes_on_where_it_was(tmp_path, bench, spec_file, undisturbed, same_as):
    out = tmp_path / "run"
    first = bench(spec_file, "--out", out)
    wait_for_cells(first, out, 3)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    kept = finished_cells(out)
    assert 3 <= kept < 16
    assert Run(out).manifest()["finished"] is None
    again = bench(spec_file, "--out", out)
    told, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert f"{16 - kept} cells computed, {kept} reused" in told
    same_as(Run(out), undisturbed)


def test_ctrl_c_says_how_to_go_on_and_that_works(tmp_path, bench, spec_file, undisturbed, same_as):
    out = tmp_path / "run"
    first = bench(spec_file, "--out", out)
    wait_for_cells(first, out, 3)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=600)
    assert first.returncode == 130
    assert "Traceback" not in errors
    manifest = Run(out).manifest()
    assert manifest["finished"] is None and len(manifest["keys"]) >= 3
    assert set(Run(out).records().status) == {"ok"}  # what is finished can be looked at
    program, command, *arguments = shlex.split(re.search(r"Go on with: (.*)", errors)[1])
    assert (program, command) == ("attncompare", "bench")
    again = bench(*arguments)
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    same_as(Run(out), undisturbed)


def test_shards_at_the_same_time_in_one_folder(tmp_path, bench, spec_file, undisturbed, same_as):
    out = tmp_path / "run"
    shards = [bench(spec_file, "--out", out, "--shard", f"{i}/3") for i in (1, 2, 3)]
    for shard in shards:
        _, errors = shard.communicate(timeout=900)
        assert shard.returncode == 0, errors
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["1-of-3.json", "2-of-3.json", "3-of-3.json"]
    last = bench(spec_file, "--out", out)
    told, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors
    assert "0 cells computed, 16 reused" in told
    same_as(Run(out), undisturbed)
