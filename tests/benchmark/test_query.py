"""SQL over a run: what it shows, and that it can do nothing else."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.errors import SpecError

SPEC = {
    "models": ("demo/cnn",),
    "methods": ("cam", "center_map"),
    "metrics": ("sparseness",),
    "limit": 3,
    "timing": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_benchmark(BenchmarkSpec(**(SPEC | {"seed": 5})), folder)  # cells of an earlier run lie beside these
    return run_benchmark(BenchmarkSpec(**SPEC), folder)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_query_sees_the_runs_own_records_and_all_of_them(run):
    frame = run.records()
    assert run.query("select count(*) as n from records").n.tolist() == [len(frame)]
    found = run.query(
        "select method, avg(value) as mean from records where measure = 'sparseness' group by 1 order by 1"
    )
    expected = frame[frame.measure == "sparseness"].groupby("method").value.mean()
    pd.testing.assert_series_equal(found.set_index("method")["mean"], expected, check_names=False)


def test_records_can_be_joined_to_themselves(run):
    found = run.query("select count(*) as n from records a join records b using (key, image, measure)")
    assert found.n.tolist() == [len(run.records())]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("selec 1", "syntax error"),
        ("select nope from records", "nope"),
        ("", "no table"),
        ("insert into records values (1)", "records"),
        ("delete from records", "delete"),
        ("copy records to '{folder}/stolen.csv'", "disabled by configuration"),
        ("export database '{folder}/stolen'", "disabled by configuration"),
        ("attach '{folder}/stolen.db'", "disabled by configuration"),
        ("select * from read_parquet('{folder}/records/*.parquet')", "disabled by configuration"),
        ("select * from '{folder}/run.json'", "disabled by configuration"),
        ("set enable_external_access = true", "locked"),
        ("select * from sql", "does not exist"),
    ],
)
def test_whatever_else_it_asks_for_is_one_line_and_leaves_no_trace(run, sql, expected):
    before = contents(run.folder)
    with pytest.raises(SpecError, match=expected) as caught:
        run.query(sql.format(folder=run.folder))
    assert "\n" not in str(caught.value)
    assert contents(run.folder) == before


def test_dropping_the_view_drops_nothing(run):
    before = contents(run.folder)
    run.query("drop view records")
    assert contents(run.folder) == before and run.query("select 1 as x from records limit 1").x.tolist() == [1]


def command(*arguments):
    code = "from attncompare.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_prints_a_table_json_and_csv(run):
    sql = "select method, '=1+1' as note, count(*) as n from records group by 1 order by 1"
    shown = command("query", run.folder, sql)
    assert shown.returncode == 0 and [line.split() for line in shown.stdout.splitlines()] == [
        ["method", "note", "n"], ["cam", "=1+1", "6"], ["center_map", "=1+1", "6"],
    ]  # fmt: skip
    assert json.loads(command("query", run.folder, sql, "--json").stdout)[0] == {
        "method": "cam",
        "note": "=1+1",
        "n": 6,
    }
    assert command("query", run.folder, sql, "--csv").stdout == "method,note,n\ncam,'=1+1,6\ncenter_map,'=1+1,6\n"


def test_the_command_says_what_is_wrong_in_one_line(run, tmp_path):
    for folder, sql in ((run.folder, "selec 1"), (tmp_path / "none", "select 1")):
        found = command("query", folder, sql)
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
