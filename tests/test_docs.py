"""What README.md and docs/ say is so: their examples run, their tables are current, their links lead somewhere."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pandas as pd
import pytest
import skimage
from references.dual_encoders import write

import attncompare as ac
from attncompare.metrics._base import metrics

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
FIGURE_KIND = """
bars = ac.figures.draw(run.folder, "record-counts").axes[0].patches
assert [bar.get_height() for bar in bars] == list(run.records().groupby("model").size())
"""
FIRST = {
    "README.md": "from torch import nn\n"
    "my_module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n",
    "tutorial.md": "",
}
"""What a page takes for granted."""
LAST = {
    "README.md": "assert len(records) == 2 and len(figure.axes) == 4\n"
    "for maps in (swin_maps, siglip_maps, clip_maps, net_maps):\n"
    "    values = [m.values for m in maps.values()]\n"
    "    assert len(values) == 2 and all(v.isfinite().all() for v in values) and max(v.std() for v in values) > 0\n",
    "tutorial.md": "assert positive.values.min() >= 0 and len(agreement) == 12 and 'toprule' in latex\n",
}
"""What must hold after a page's examples ran."""


@pytest.fixture(scope="module")
def benchmarks():
    """The folder of benchmarks as a place to import from."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def here(tmp_path):
    """A folder with a cat in it, and a process's environment that finds the package."""
    os.symlink(Path(skimage.__file__).parent / "data" / "chelsea.png", tmp_path / "cat.png")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"cwd": tmp_path, "env": os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": path}}


def blocks(path, language):
    """The code of every fence of a language, in order; "" is a fence without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [code for named, code in found if named == language]


def test_what_the_reference_describes_exists():
    named = [
        name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(named) > 40
    for name in named:
        assert resolve_name(name) is not None


@pytest.mark.parametrize("path", [README, DOCS / "tutorial.md"], ids=lambda path: path.name)
def test_the_examples_run(path, here):
    write(here["cwd"] / "my-clip", "CLIP")
    code = FIRST[path.name] + "\n".join(blocks(path, "python")) + LAST[path.name]
    if path.name == "tutorial.md":
        code += blocks(DOCS / "how-to" / "figure-kind.md", "python")[0] + FIGURE_KIND
    done = subprocess.run([sys.executable, "-c", code], **here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(here):
    lines = [line for block in blocks(README, "") for line in block.splitlines() if line.startswith("attncompare ")]
    assert len(lines) == 4
    for line in lines:
        words = line.replace("--limit 64", "--limit 2 --no-timing").split()[1:]
        code = "from attncompare.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *words], **here, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    assert {"maps", "runs", "curves.pdf"} <= {path.name for path in here["cwd"].iterdir()}
    assert (here["cwd"] / "runs" / "first" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_code_is_python_and_links_lead_somewhere(path):
    for code in blocks(path, "python"):
        compile(code, str(path), "exec")
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_page_is_in_the_menu_and_every_public_name_in_the_reference():
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in PAGES[1:] if f": {page.relative_to(DOCS)}" not in menu] == []
    named = re.findall(r"^::: [\w.]+\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert set(ac.__all__) - {"__version__", *ac._MODULES} <= set(named)
    assert set(ac.studies.__all__) <= set(named)


def test_the_tables_of_methods_are_current(benchmarks):
    from method_table import long_table, put, short_table

    for path, table in ((README, short_table()), (DOCS / "methods.md", long_table())):
        text = path.read_text(encoding="utf-8")
        assert put(text, "methods", table) == text, "run python benchmarks/method_table.py"
    assert set(re.findall(r"`(\w+)`", short_table())) == set(ac.list_methods())


def test_the_table_of_speed_is_that_of_the_file(benchmarks):
    from speed_table import PAGE, RESULTS, put, speed_table

    text = PAGE.read_text(encoding="utf-8")
    assert put(text, "speed", speed_table(pd.read_csv(RESULTS / "speed_scores.csv"))) == text, (
        "run python benchmarks/speed_table.py"
    )


def test_the_answers_are_those_of_the_scores(benchmarks):
    from demo_scores import ACCURACY, CHEATING, SCORES, put, question_table

    text, scores = README.read_text(encoding="utf-8"), pd.read_csv(SCORES)
    assert put(text, "questions", question_table(scores, pd.read_csv(CHEATING), pd.read_csv(ACCURACY))) == text, (
        "run python benchmarks/demo_scores.py --table"
    )
    assert (scores.n == 32).all() and (scores.low <= scores["mean"]).all() and (scores["mean"] <= scores.high).all()


def test_a_recommended_method_beats_every_control(benchmarks):
    from demo_scores import QUESTIONS, SCORES

    means = pd.read_csv(SCORES).set_index(["model", "measure", "method"])["mean"]
    for _, model, method, measure in QUESTIONS:
        sign = -1 if metrics.get(measure).better == "lower" else 1
        controls = [means[model, measure, name] for name in ("random_map", "center_map", "edge_map")]
        assert sign * means[model, measure, method] > max(sign * one for one in controls), (model, method)


def test_the_page_on_cheating_shows_the_figures_of_the_study(benchmarks):
    from cheating import PAGE, RESULTS, accuracy_table, method_table, put

    text = PAGE.read_text(encoding="utf-8")
    energy, accuracy = (pd.read_csv(RESULTS / f"{name}.csv") for name in ("cheating", "cheating_accuracy"))
    current = put(put(text, "accuracy", accuracy_table(accuracy)), "energy", method_table(energy))
    assert current == text, "run python benchmarks/cheating.py --table"
    assert (energy[energy.control].difference == 0).all()  # controls know nothing of either model
    assert PAGE.with_suffix(".png").stat().st_size < 200_000


def test_the_table_of_conformance_is_that_of_the_file():
    text = (DOCS / "conformance.md").read_text(encoding="utf-8")
    with (ROOT / "benchmarks" / "results" / "conformance.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [f"| `{r['method']}` | {r['reference']} | {r['models']} | {r['max_difference']} |" for r in rows]
    assert [line for line in text.splitlines() if line.startswith("| `")] == lines
