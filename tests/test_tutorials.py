"""docs/tutorials.md is run: every command and every line of Python in its table, and the pictures are looked at."""

import ast
import re
import shlex
import shutil
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage
from command_line import run
from matplotlib.figure import Figure
from PIL import Image

import attncompare as ac

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8")
COLUMNS = ("number", "shown", "commands", "line", "picture", "test")
ROWS = [
    dict(zip(COLUMNS, (cell.strip() for cell in line.strip("| ").split(" | ")), strict=True))
    for line in PAGE.splitlines()
    if re.match(r"\| T\d+ \|", line)
]
each_row = pytest.mark.parametrize("row", ROWS, ids=[row["number"] for row in ROWS])

QUICK_TRAINING = ("train_images=32", "validation_images=16", "test_images=16", "epochs=1", "size=16")
QUICK = {
    "T2": ["--limit", "3"],
    "T3": ["quick.toml", "--draws", "2"],
    "T8": ["--steps", "4", "--layers", "0,2"],
    "T9": ["--limit", "6", "--layers", "2"],
    "T10": ["--option", "lime.n_samples=40"],
    "T13": ["--model", "demo/cnn", "--method", "grad_cam", "--images", "4", "--steps", "2"],
}
"""What is added to the first command where its defaults take minutes."""

QUICK_LINE = {
    "T3": ("(seeds=3,", f"(ac.TrainSpec({', '.join(QUICK_TRAINING)}), draws=2, seeds=3,"),
    "T8": ("(model, images)", '(model, images, ["blocks.0"], steps=2)'),
    "T9": ('"others/")', '"others/", ["blocks.6"])'),
    "T10": ('"lime")', '"lime", n_samples=40)'),
    "T13": (
        '("t13")',
        '("t13", models=["demo/cnn"], methods=["cam"], images=4, training=ac.studies.CueTraining(steps=2))',
    ),
}
"""What is put in place of a part of the line."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a cat, the settings of a short training, and three folders of noise."""
    shutil.copy(Path(skimage.__file__).parent / "data" / "chelsea.png", tmp_path / "cat.png")
    (tmp_path / "quick.toml").write_text("\n".join(QUICK_TRAINING))
    draw = np.random.default_rng(0)
    for name, count in (("cats", 2), ("striped", 6), ("others", 60)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def opened():
    """The names that the lines of the table follow on."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    cat = str(Path(skimage.__file__).parent / "data" / "chelsea.png")
    names: dict[str, object] = {}
    exec(code.replace('"cat.png"', repr(cat)), names)
    return names


def code_in(cell):
    found = re.findall(r"`([^`]+)`", cell)
    assert found, cell
    return found


def look_at(path):
    """Fail unless the file holds a picture."""
    if path.suffix == ".png":
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3) // 32
        assert len(np.unique(pixels, axis=0)) > 20, f"{path} is all but empty"
    elif path.suffix == ".pdf":
        content = path.read_bytes()
        assert content.startswith(b"%PDF") and b"/Subtype /Image" in content and len(content) > 5_000
    else:
        assert path.suffix == ".html"
        page = path.read_text(encoding="utf-8")
        assert "data:image/png;base64," in page and 'type="range"' in page


def says_something(found):
    """Whether a table has finite numbers, a figure something drawn, a map more than one value."""
    if isinstance(found, pd.DataFrame):
        return len(found) > 0 and bool(np.isfinite(found.select_dtypes("number")).any(axis=None))
    if isinstance(found, Figure):
        return any(axes.has_data() for axes in found.axes)
    if isinstance(found, ac.AttributionMap):
        return bool(found.values.isfinite().all()) and float(found.values.std()) > 0
    if is_dataclass(found):  # a study's result
        tables = [one for one in vars(found).values() if isinstance(one, pd.DataFrame)]
        return any(says_something(table) for table in tables)
    return len(found.data) > 1 and all(trace.z is not None or trace.source for trace in found.data)  # plotly's


def test_every_system_of_the_tutorials_has_a_row():
    assert [row["number"] for row in ROWS] == [f"T{number}" for number in range(1, 14)]


@each_row
def test_the_command_makes_the_picture(row, folder):
    for place, command in enumerate(code_in(row["commands"])):
        program, *arguments = shlex.split(command)
        assert program == "attncompare"
        done = run(*arguments, *(QUICK.get(row["number"], []) if place == 0 else []))
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    (pattern,) = code_in(row["picture"])
    (picture,) = folder.glob(pattern)
    look_at(picture)


@each_row
def test_the_line_of_python_gives_something(row, folder, opened):
    (line,) = code_in(row["line"])
    if row["number"] in QUICK_LINE:
        part, quick = QUICK_LINE[row["number"]]
        assert part in line
        line = line.replace(part, quick)
    found = eval(line, dict(opened))
    assert says_something(found), found


@each_row
def test_the_named_test_exists(row):
    (named,) = code_in(row["test"])
    path, name = named.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
