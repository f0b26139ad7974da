"""A run may lie anywhere that fsspec reaches; memory:// stands for all of them."""

import uuid
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import ResultStore
from attncompare.errors import SpecError
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.html import write_report
from attncompare.reporting.tables import table
from attncompare.storage.folder import RunFolder


@pytest.fixture
def url():
    """A place in memory of its own."""
    return f"memory://{uuid.uuid4().hex}/run"


@pytest.fixture(params=["local", "memory"])
def files(request, tmp_path, url):
    return RunFolder(tmp_path / "run" if request.param == "local" else url)


def small(**changes):
    values = {"models": ("demo/cnn",), "methods": ("cam", "center_map"), "limit": 3, "chunk_size": 2, "timing": False}
    return BenchmarkSpec(**(values | {"protocol": "rise-fast", "save_maps": True} | changes))


def test_files_are_written_listed_read_and_moved(files):
    assert files.names("records") == [] and not files.exists("records/a")
    files.write("records/b", b"2")
    files.write("records/a", b"1")
    files.write("records/a", b"3")
    assert files.names("records") == ["a", "b"]
    assert files.read_those_there(["records/a", "records/c", "records/b"]) == {"records/a": b"3", "records/b": b"2"}
    assert files.read_those_there([]) == {} and files.read_those_there(["records/c"]) == {}
    files.move("records/a", "quarantine/a")
    assert files.names("records") == ["b"] and files.read("quarantine/a") == b"3"
    with pytest.raises(FileNotFoundError):
        files.read("records/a")


def test_a_move_that_breaks_off_leaves_no_half_file(files, monkeypatch):
    files.write("records/a", b"whole")

    def pulled_plug(*_, **__):
        raise OSError("no power")

    monkeypatch.setattr("os.replace", pulled_plug)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.mv", pulled_plug)
    with pytest.raises(OSError, match="no power"):
        files.write("records/a", b"other")
    with pytest.raises(OSError, match="no power"):
        files.write("records/b", b"other")
    assert files.names("records") == ["a"] and files.read("records/a") == b"whole"


def test_an_error_of_the_store_is_not_taken_for_a_missing_file(url, monkeypatch):
    files = RunFolder(url)
    files.write("records/a", b"1")

    def denied(*_, **__):
        raise PermissionError("denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", denied)
    with pytest.raises(PermissionError):
        files.read_those_there(["records/a"])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("nosuch://bucket/run", "Protocol not known: nosuch"),
        (Path("memory://run"), "give a URL as text, not as a Path"),
    ],
)
def test_a_place_that_cannot_be_opened_is_refused(place, expected):
    with pytest.raises(SpecError, match=expected):
        RunFolder(place)


def test_a_whole_run_lies_in_memory_and_is_resumed(url, tmp_path):
    first = run_benchmark(small(), url)
    assert (first.computed, first.reused, first.folder) == (4, 0, url)
    again = run_benchmark(small(), url)
    assert (again.computed, again.reused) == (0, 4)
    local = run_benchmark(small(), tmp_path)
    pd.testing.assert_frame_equal(again.records(), local.records())
    assert table(url, "csv") == table(tmp_path, "csv")
    assert not list(Path().glob("memory*"))


def test_a_damaged_file_elsewhere_is_set_aside_and_computed_again(url):
    before = run_benchmark(small(), url).records()
    store = ResultStore(url)
    name = store.files.names("records")[0]
    store.files.write(f"records/{name}", b"PAR1")
    again = run_benchmark(small(), url)
    assert (again.computed, again.reused) == (1, 3)
    assert store.quarantined() == [name] and store.files.read(f"quarantine/{name}") == b"PAR1"
    pd.testing.assert_frame_equal(again.records(), before)


def test_maps_pictures_and_report_lie_beside_the_records(url):
    run_benchmark(small(), url)
    run = Gallery.open(url)
    assert run.map("demo/cnn", "cam", "shapes-test-00002").shape == (8, 8)
    assert run.picture("demo/cnn", "shapes-test-00002").shape == (64, 64, 3)
    assert write_report(url) == f"{url}/report.html"
    assert fsspec.filesystem("memory").cat_file(f"{url}/report.html").startswith(b"<!doctype html>")


def test_two_processes_that_write_one_file_elsewhere_do_not_meet(url, monkeypatch):
    """The second writes while the first is between its upload and its move."""
    first, second = RunFolder(url), RunFolder(url)
    move = type(first.store).mv

    def overtaken(store, *names, **how):
        monkeypatch.setattr(type(first.store), "mv", move)
        second.write("images/a.png", b"second")
        move(store, *names, **how)

    monkeypatch.setattr(type(first.store), "mv", overtaken)
    first.write("images/a.png", b"first")
    assert first.read("images/a.png") == b"first"
    assert first.store.ls(f"{first.root}/images", detail=False) == [f"{first.root}/images/a.png"]
