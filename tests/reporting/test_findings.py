"""The sentences of the report say what the numbers say."""

import numpy as np
import pandas as pd
import pytest

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.reporting import findings
from attncompare.reporting.entries import Entries
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.sections import section


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    methods = ("cam", "saliency", "center_map", "random_map")
    spec = BenchmarkSpec(
        models=("demo/cnn",), methods=methods, metrics=("sparseness", "complexity"), limit=8, timing=False
    )
    run_benchmark(spec, path)
    return Gallery.open(path)


def test_the_leader_and_those_it_cannot_be_told_from(run):
    rows = findings.best_first(run, "demo/cnn", "sparseness")
    best = rows.iloc[0]
    assert best["mean"] == rows["mean"].max()
    alone = findings.leader(run, "demo/cnn", "sparseness", dict.fromkeys(rows.method, "b") | {best.method: "a"})
    assert (
        alone
        == f"{best.method} leads (sparseness {best['mean']:.3f}, 95 % interval {best.low:.3f} to {best.high:.3f}, n = 8)"
    )
    together = findings.leader(run, "demo/cnn", "sparseness", dict.fromkeys(rows.method, "a"))
    assert "not told apart from" in together and together.endswith("and so from a control")
    assert findings.leader(run, "demo/vit", "sparseness", {}) == ""


def test_a_control_that_leads_is_called_one(run):
    lowest = findings.best_first(run, "demo/cnn", "complexity").iloc[-1]
    assert lowest["mean"] == findings.best_first(run, "demo/cnn", "complexity")["mean"].max()
    summary = run.summary.copy()
    summary.loc[(summary.method == "center_map") & (summary.measure == "sparseness"), "mean"] = 1.0
    changed = Gallery(run.folder, run.records, run.manifest, run.maps)
    changed.__dict__["summary"] = summary
    assert findings.leader(changed, "demo/cnn", "sparseness", {}).startswith("no method beats the control center_map")


def test_pairs_that_agree_most_and_least():
    table = pd.DataFrame([[1, 0.9, -0.2], [0.9, 1, 0.1], [-0.2, 0.1, 1]], index=list("abc"), columns=list("abc"))
    assert findings.alike(table, "methods") == "a and b (0.90) agree most, a and c (-0.20) least"
    assert findings.alike(table.iloc[:1, :1], "methods") == "too few methods to compare"
    assert (
        findings.alike(pd.DataFrame(np.nan, index=list("ab"), columns=list("ab")), "models")
        == "too few models to compare"
    )


def test_nothing_outside_the_front_is_cheaper_and_better_than_all_of_it():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((40, 2)), columns=["ms", "deletion"], index=[f"m{i}" for i in range(40)])
    table = table.round(3)
    front = [name for point in findings.pareto_front(table, "ms", "deletion") for name in point]
    for name, row in table.iterrows():
        beaten = (table.ms < row.ms) & (table.deletion < row.deletion)  # no two draws are equal
        assert (name in front) != beaten.any()


@pytest.fixture
def tied(run):
    """The run, had its two methods the same sparseness in the digits of the table."""
    summary = run.summary.copy()
    of = summary.measure == "sparseness"
    for method, mean in (("cam", 0.951604), ("saliency", 0.951609), ("center_map", 0.3), ("random_map", 0.2)):
        summary.loc[of & (summary.method == method), "mean"] = mean
    changed = Gallery(run.folder, run.records, run.manifest, run.maps)
    changed.__dict__["summary"] = summary
    return changed


def test_methods_that_the_table_prints_alike_are_all_named_first(tied):
    ranking = section(Entries.of(tied), 0)["rankings"][0]
    places = {row["method"]: (row["cells"][0]["text"], row["cells"][0]["place"]) for row in ranking["rows"]}
    assert places["cam"] == places["saliency"] == ("0.952", 1)
    assert ranking["finding"].startswith("cam and saliency lead") or ranking["finding"].startswith(
        "saliency and cam lead"
    )
    assert "cam and saliency are best by sparseness" in findings.heat(tied, "demo/cnn")
    costs = pd.DataFrame({"passes": [2.0, 2.0, 5.0], "sparseness": [0.951604, 0.951609, 0.95163]}, index=list("abc"))
    assert findings.pareto_front(costs, "passes", "sparseness") == [["a", "b"]]


def test_a_front_goes_from_its_cheapest_to_its_best_point():
    assert findings.front("vit", [["a"], ["b"]], "latency", "insertion").endswith("goes from a to b")
    assert findings.front("vit", [["a"], ["b"], ["c", "d"]], "passes", "road").endswith("goes from a over b to c = d")
    assert (
        findings.front("vit", [["a"]], "passes", "road") == "vit: a alone is on the Pareto front of road against passes"
    )


def test_a_section_holds_every_method_with_its_interval_and_letters(run):
    found = section(Entries.of(run), 0)
    (ranking,) = found["rankings"]
    assert [head["name"] for head in found["heads"]] == ["sparseness ↑", "complexity ↓"]
    assert {row["method"] for row in ranking["rows"]} == {"cam", "saliency", "center_map", "random_map"}
    for row in ranking["rows"]:
        for cell in row["cells"]:
            low, high = map(float, cell["interval"].split(" – "))
            assert low <= cell["value"] + 0.001 and cell["value"] <= high + 0.001 and cell["letters"]
    assert sum(row["cells"][0]["place"] == 1 for row in ranking["rows"]) == 1
    assert found["too_few"] == ""  # 2 / 2^8 times 6 pairs is below 5 %
