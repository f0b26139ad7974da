"""Every notebook runs from its first cell to its last in a process of its own, and what it shows is looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.fixture
def execute(tmp_path):
    def run(number, *names):
        """The values of these names after the notebook ran at its small settings; its figures and tables lie in tmp_path."""
        script = next(path for path in NOTEBOOKS if path.name.startswith(f"{number}_"))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        quick = {"ATTNCOMPARE_NOTEBOOK_SMALL": "1", "MPLBACKEND": "Agg", "PYTHONPATH": path}
        command = [sys.executable, str(ROOT / "tests" / "run_notebook.py"), str(script), str(tmp_path), *names]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | quick, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "values.json").read_text())

    return run


def pictures(path):
    """How many clearly different colors a figure has; an empty one has a handful."""
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3) // 16, axis=0))


def test_the_list_is_complete():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number}_" for number in range(1, 8)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin(path):
    """It says something, uses the public names only, and opens in Jupyter with its pictures inline."""
    text = path.read_text()
    assert text.startswith("# %% [markdown]\n# # ") and "# %matplotlib inline" in text
    assert "from attncompare" not in text and "import attncompare." not in text and "\nimport attncompare as ac" in text


def test_first_map(execute, tmp_path):
    made = execute(1, "chosen", "scores", "slider")
    assert "cat" in made["chosen"]  # the photo shows one
    assert pictures(tmp_path / "figure.png") > 200 and pictures(tmp_path / "lime_figure.png") > 200
    assert "'lime'" in made["slider"]
    maps = np.load(tmp_path / "maps.npz")
    assert maps["grad_cam"].shape == (1, 7, 7) and maps["saliency"].shape == (1, 224, 224)
    assert all(maps[name].std() > 0 for name in maps.files)
    assert len(made["scores"]) == 6 and all(0 < value < 1 for value in made["scores"].values())


def test_cnn_and_vit(execute, tmp_path):
    made = execute(2, "refusal")
    assert "class_attention" in made["refusal"] and "efficientnet_lite0" in made["refusal"]
    assert pictures(tmp_path / "cnn_figure.png") > 200 and pictures(tmp_path / "vit_figure.png") > 200
    agreement = pd.read_csv(tmp_path / "agreement.csv", index_col="pair")
    assert agreement.shape == (3, 3) and agreement["rank_correlation"].between(-1, 1).all()
    assert agreement["top_k_overlap"].between(0, 1).all() and agreement["ssim"].nunique() == 3


def test_benchmark_methods(execute, tmp_path):
    assert execute(3, "IMAGES") == {"IMAGES": 4}
    pointing = pd.read_csv(tmp_path / "pointing.csv").set_index(["model", "method"])
    assert (
        (pointing.n == 4).all()
        and (pointing.low <= pointing["mean"]).all()
        and (pointing["mean"] <= pointing.high).all()
    )
    assert pointing.loc[("demo/cnn", "grad_cam"), "mean"] > pointing.loc[("demo/cnn", "random_map"), "mean"]
    refused = pd.read_csv(tmp_path / "refused.csv")
    assert set(zip(refused.model, refused.method, strict=True)) == {
        ("demo/cnn", "attention_rollout"), ("demo/cnn", "gradient_rollout")
    }  # fmt: skip
    best, summary = pd.read_csv(tmp_path / "best.csv"), pd.read_csv(tmp_path / "summary.csv")
    insertion = summary[summary.measure == "insertion"].groupby("model")["mean"].max()
    np.testing.assert_allclose(best.set_index("model").insertion, insertion)
    assert pictures(tmp_path / "figure.png") > 20
    assert len(list((tmp_path / "runs" / "notebook-3" / "records").glob("*.parquet"))) == 12


def test_your_own_model(execute, tmp_path):
    made = execute(4, "accuracy", "found", "on_the_shape")
    assert made["accuracy"] > 0.85  # 5 of 8 shapes are straight
    assert made["found"]["tokens"] is not None
    assert made["on_the_shape"]["grad_cam"] > made["on_the_shape"]["random_map"]
    assert pictures(tmp_path / "figure.png") > 200


def test_add_a_method(execute, tmp_path):
    made = execute(5, "known", "complaint")
    assert made["known"] is True and "did you mean power" in made["complaint"]
    maps = np.load(tmp_path / "maps.npz")
    assert (maps["positive_evidence"] >= np.maximum(maps["hires_cam"], 0) - 1e-6).all()  # the sum of the positive terms
    means = pd.read_csv(tmp_path / "means.csv", index_col="method")
    assert means.loc["positive_evidence", ["deletion", "insertion", "energy_inside"]].between(0, 1).all()
    assert means.loc["positive_evidence", "insertion"] > means.loc["random_map", "insertion"]


def test_paper_figures(execute, tmp_path):
    made = execute(6, "written", "latex")
    for file in made["written"]:
        assert (tmp_path / file).stat().st_size > 2000
    assert all(pictures(tmp_path / f"{name}.png") > 20 for name in ("grid", "curves", "cost"))
    assert (tmp_path / "figures" / "grid.pdf").read_bytes().startswith(b"%PDF")
    assert "\\toprule" in made["latex"] and "demo/vit" in made["latex"] and "rise-fast" in made["latex"]


def test_studies(execute, tmp_path):
    execute(7)
    assert len(pd.read_csv(tmp_path / "layers_table.csv")) >= 3
    accuracy = pd.read_csv(tmp_path / "accuracy.csv")
    assert set(accuracy.role) == {"cheating", "clean"} and accuracy.accuracy.between(0, 1).all()
    assert len(pd.read_csv(tmp_path / "gated_table.csv")) > 3
    concepts = pd.read_csv(tmp_path / "concept_table.csv")
    assert set(concepts.measure) == {"score", "magnitude"} and set(concepts.concept) == {"striped"}
    for name in ("layers_figure", "choices_figure", "kept_figure", "concept_figure", "gates_figure", "cheats_figure"):
        assert pictures(tmp_path / f"{name}.png") > 20, name
