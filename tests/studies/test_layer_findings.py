"""docs/studies/layers.md: its table is that of the numbers, and what it says in words is so in them."""

import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "studies" / "layers.md"


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of benchmarks as a place to import from."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    sys.modules.pop("layer_trends", None)


def test_the_table_is_current(benchmarks):
    from layer_trends import put, trend_table

    text = PAGE.read_text(encoding="utf-8")
    table = trend_table(pd.read_csv(RESULTS / "layer_trends.csv"))
    assert put(text, "trends", table) == text, "run python benchmarks/layer_trends.py --table"


def test_the_words_are_so_in_the_numbers():
    trends = pd.read_csv(RESULTS / "layer_trends.csv").set_index(["model", "map", "grid", "measure"])
    assert (trends.n >= 100).all()
    verdict, change = trends.verdict, trends.change
    for model in ("demo/cnn", "demo/se_cnn", "demo/vit"):
        assert verdict[model, "activation", "own", "edges"] == "falls"
    assert change["demo/cnn", "activation", "own", "edges"] == pytest.approx(-0.19, abs=0.005)
    assert change["demo/cnn", "activation", "coarsest", "edges"] == pytest.approx(-0.04, abs=0.005)
    assert verdict["offline/efficientnet_lite0", "activation", "own", "edges"] == "open"
    for model in ("demo/cnn", "demo/se_cnn"):
        assert (
            verdict[model, "activation", "own", "object"]
            == verdict[model, "activation", "coarsest", "object"]
            == "rises"
        )
        assert verdict[model, "activation", "own", "gini"] == "falls"
    assert verdict["demo/cnn", "activation", "coarsest", "gini"] == "rises"
    assert verdict["demo/se_cnn", "activation", "coarsest", "gini"] == "open"
    assert verdict["demo/vit", "activation", "own", "object"] == "falls"
    assert verdict["demo/vit", "class_attention", "own", "object"] == "rises"
    assert verdict["demo/vit", "attention", "own", "attention_distance"] == "open"


def test_the_means_are_those_of_the_layers():
    means = pd.read_csv(RESULTS / "layer_means.csv").set_index(["model", "map", "grid", "measure", "depth"])["mean"]
    said = {
        ("demo/cnn", "activation", "own", "object"): {1: 2.0, 3: 1.05, 4: 2.7},
        ("demo/se_cnn", "activation", "coarsest", "object"): {1: 2.0, 4: 2.6},
        ("demo/vit", "activation", "own", "object"): {1: 1.2, 6: 0.37},
        ("demo/vit", "class_attention", "own", "object"): {1: 2.2, 6: 4.7},
        ("offline/efficientnet_lite0", "activation", "own", "edges"): {1: -0.13, 2: 0.60, 5: 0.29},
        ("demo/vit", "attention", "own", "attention_distance"): {1: 33.2},
    }
    for series, by_depth in said.items():
        for depth, value in by_depth.items():
            assert means[(*series, depth)] == pytest.approx(value, abs=0.05 if abs(value) >= 1.1 else 0.006), (
                series,
                depth,
            )
    heads = pd.read_csv(RESULTS / "attention_distance.csv")
    heads = heads[heads.model == "demo/vit"]
    assert round(heads.uniform.iloc[0], 1) == 33.1
    second, later = heads[heads.depth == 2]["mean"], heads[heads.depth >= 3]["mean"]
    assert (round(second.min()), round(second.max())) == (20, 38)
    assert (round(later.min()), round(later.max())) == (28, 32)
