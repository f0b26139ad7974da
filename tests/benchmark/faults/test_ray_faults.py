"""Ray: workers and nodes are killed, images kill their worker, and the driver dies."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from attncompare.benchmark.execution import Execution
from attncompare.benchmark.run import Run, run_benchmark
from attncompare.data.shapes import render_shape

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
TWO = Execution("ray", workers=2)
MEMORY = 80 * 2**20
AS_NICE_AS_WE_ARE = {"worker_niceness": 0}


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = parent_of(pid)
    return False


def titled(ancestor: int, title: bytes) -> list[int]:
    """The processes below another one that Ray has given this title: what an actor is at right now."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if line.strip(b"\0 ") == title and is_below(int(folder.name), ancestor):
                found.append(int(folder.name))
    return found


def at_work(ancestor: int) -> list[int]:
    """The processes below another one in which an actor scores a chunk right now."""
    return titled(ancestor, b"ray::ChunkActor.run_chunk")


@contextmanager
def struck_at_work(ancestor, strike):
    """Meanwhile the first process caught at work is stopped, so that its chunk cannot end, and struck; then it is killed.

    Yields the list that it will stand in."""
    struck, over = [], threading.Event()

    def watch():
        while not struck and not over.wait(0.005):
            for pid in at_work(ancestor)[:1]:
                os.kill(pid, signal.SIGSTOP)
                if pid in at_work(ancestor):
                    struck.append(pid)
                    try:
                        strike()
                    finally:  # a stopped process would never end
                        os.kill(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGCONT)  # it had ended the chunk before it was stopped

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield struck
    finally:
        over.set()
        watcher.join()


@pytest.fixture(autouse=True)
def no_ray_is_left():
    yield
    ray.shutdown()


def test_two_workers_come_to_the_same_as_one_process(tmp_path, spec, undisturbed, same_as):
    ticks = []
    run = run_benchmark(spec, tmp_path, execution=TWO, progress=ticks.append)
    assert (run.computed, run.reused, run.manifest()["deaths"]) == (16, 0, [])
    assert ticks[-1].done == ticks[-1].total == 2 * 2 * 8 and len(ticks) == 4
    assert set(run.records().threads) == {1} and run.manifest()["environment"]["threads"] == 1
    assert not ray.is_initialized()
    same_as(run, undisturbed)


def test_a_worker_killed_in_the_middle_of_a_chunk_is_replaced(tmp_path, spec, undisturbed, same_as):
    with struck_at_work(os.getpid(), lambda: None) as struck:
        run = run_benchmark(spec, tmp_path, execution=TWO)
    assert len(struck) == 1 and len(run.manifest()["deaths"]) == 1
    assert "its worker process died" in run.manifest()["deaths"][0]
    same_as(run, undisturbed)


def test_a_node_may_go(tmp_path, spec, undisturbed, same_as):
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "_system_config": AS_NICE_AS_WE_ARE},
    )
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    raylet = node.all_processes["raylet"][0].process.pid
    deadline = time.monotonic() + 120

    def wait_for_its_actor(tick):
        """Leave work for the node's actor: the head's, loaded first, could do it all."""
        while not (struck or titled(raylet, b"ray::ChunkActor") or at_work(raylet)) and time.monotonic() < deadline:
            time.sleep(0.02)

    try:
        with struck_at_work(raylet, lambda: cluster.remove_node(node, allow_graceful=False)) as struck:
            execution = Execution("ray", workers=2, address=cluster.address)
            run = run_benchmark(spec, tmp_path, execution=execution, progress=wait_for_its_actor)
        assert struck and len(run.manifest()["deaths"]) == 1
        same_as(run, undisturbed)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(render_shape(i).image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def lethal_workers(monkeypatch):
    """A Ray whose workers die of some pictures; this process does not."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
    hook = {"worker_process_setup_hook": "lethal.plant"}
    ray.init(
        num_cpus=2, object_store_memory=MEMORY, include_dashboard=False, log_to_driver=False, runtime_env=hook,
        _system_config=AS_NICE_AS_WE_ARE,
    )  # fmt: skip


def test_an_image_that_kills_its_worker_every_time_is_a_failed_record(
    tmp_path, spec, pictures, lethal_workers, same_rows
):
    Image.new("RGB", (64, 64), "white").save(pictures / "2.png")
    of_folder = spec.model_copy(update={"data": str(pictures), "models": ("demo/cnn",), "limit": None})
    expected = run_benchmark(of_folder, tmp_path / "undisturbed").records()
    run = run_benchmark(of_folder, tmp_path / "run", execution=TWO)
    records = run.records()
    lost = records[records.image == "2.png"]
    assert set(lost.status) == {"failed"} and lost.detail.str.startswith("its worker process died").all()
    assert set(zip(lost.method, lost.measure, strict=True)) == {
        (method, measure) for method in spec.methods for measure in ("target_score", "deletion")
    }
    same_rows(records[records.image != "2.png"], expected[expected.image != "2.png"])
    assert set(lost.key) <= set(expected.key)  # the cell is the one of an undisturbed run
    deaths = len(run.manifest()["deaths"])
    assert deaths == 3 + 1 + 3  # the chunk; its two images at once; the one image
    again = run_benchmark(of_folder, tmp_path / "run")  # where nothing kills: what is recorded stands
    assert again.computed == 0


def test_an_image_that_kills_its_worker_when_read_is_a_failed_record(
    tmp_path, spec, pictures, lethal_workers, same_rows
):
    (pictures / "5.png").rename(pictures / "deadly.png")
    of_folder = spec.model_copy(update={"data": str(pictures), "models": ("demo/cnn",), "limit": None})
    expected = run_benchmark(of_folder, tmp_path / "undisturbed").records()
    records = run_benchmark(of_folder, tmp_path / "run", execution=TWO).records()
    lost = records[records.image == "deadly.png"]
    assert len(lost) == 4 and set(lost.status) == {"failed"}
    others, same = (rows[rows.image != "deadly.png"] for rows in (records, expected))
    beside = others.image == "4.png"  # in the same chunk, whose key cannot know what lies in the image
    same_rows(others[~beside], same[(same.image != "4.png")])
    same_rows(others[beside].assign(key=""), same[same.image == "4.png"].assign(key=""))


def test_a_killed_driver_leaves_a_run_that_goes_on(tmp_path, bench, spec_file, undisturbed, same_as):
    out = tmp_path / "run"
    driver = bench(spec_file, "--out", out, "--engine", "ray", "--workers", "2")
    deadline = time.monotonic() + 300
    while len(list(out.glob("records/*.parquet"))) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    again = bench(spec_file, "--out", out, "--engine", "ray", "--workers", "2")
    _, errors = again.communicate(timeout=900)
    assert again.returncode == 0, errors
    same_as(Run(out), undisturbed)


def test_ctrl_c_ends_ray_too(tmp_path, bench, spec, spec_file, undisturbed, same_as):
    out = tmp_path / "run"
    driver = bench(spec_file, "--out", out, "--engine", "ray", "--workers", "2")
    deadline = time.monotonic() + 300
    while len(list(out.glob("records/*.parquet"))) < 4 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 130, errors
    assert "Go on with: attncompare bench" in errors and "Traceback" not in errors
    assert not at_work(driver.pid)
    same_as(run_benchmark(spec, out), undisturbed)
