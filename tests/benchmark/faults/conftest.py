"""What every fault must leave behind: all records, none twice, with the keys and values of an undisturbed run."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attncompare.benchmark.run import Run, run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec

HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
CODE = f"{HEARD}; from attncompare.cli import main; main()"
TEXT = ["model", "method", "image", "target", "measure", "protocol", "status", "detail", "key"]
SPEC = BenchmarkSpec(
    models=("demo/cnn", "demo/vit"), methods=("saliency", "occlusion"), metrics=("deletion",), limit=8, chunk_size=2,
    protocol="rise-fast", timing=False, threads=1, options={"occlusion": {"window": 0.5}},
)  # fmt: skip


@pytest.fixture(scope="session")
def spec() -> BenchmarkSpec:
    """16 cells: 2 models, 2 methods, 4 chunks of 2 images."""
    return SPEC


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Run:
    """The same plan with nothing in its way."""
    return run_benchmark(SPEC, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def same_as() -> Callable[[Run, Run], None]:
    """Compare a run with another: every record, once, of the same key and within 1e-6 of the same value."""

    def check(run: Run, expected: Run) -> None:
        assert sorted(run.manifest()["keys"]) == sorted(expected.manifest()["keys"])
        assert len(set(run.manifest()["keys"])) == len(run.manifest()["keys"])
        assert run.manifest()["finished"]
        check_rows(run.records(), expected.records())

    return check


@pytest.fixture(scope="session")
def same_rows() -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    """The same for some records."""
    return check_rows


def check_rows(rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(expected)
    assert not rows.duplicated(["model", "method", "image", "measure", "protocol"]).any()
    pd.testing.assert_frame_equal(rows[TEXT].reset_index(drop=True), expected[TEXT].reset_index(drop=True))
    np.testing.assert_allclose(rows.value.to_numpy(), expected.value.to_numpy(), rtol=0, atol=1e-6)


@pytest.fixture
def spec_file(tmp_path) -> Path:
    """The same plan for the command line."""
    path = tmp_path / "spec.toml"
    path.write_text(
        'models = ["demo/cnn", "demo/vit"]\nmethods = ["saliency", "occlusion"]\nmetrics = ["deletion"]\nlimit = 8\n'
        'chunk_size = 2\nprotocol = "rise-fast"\ntiming = false\nthreads = 1\n[options.occlusion]\nwindow = 0.5\n'
    )
    return path


@pytest.fixture
def bench() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in a process of its own."""
    started = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command: Sequence[str] = [sys.executable, "-c", CODE, "bench", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
