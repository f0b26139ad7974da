"""Tables: the right marks, nothing that a name can break, and LaTeX that compiles."""

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from references.synthetic_run import METHODS, MODELS
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.cli import app
from attncompare.errors import AttnCompareError
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.spreadsheet import _safe
from attncompare.reporting.tables import FORMATS, table
from attncompare.reporting.tables.content import content, number
from attncompare.reporting.tables.latex import escape
from attncompare.reporting.tables.markdown import escape as escape_markdown

HOSTILE = (
    r"a&b%c$d#e_f{g}h~i^j\k<l>m|n\"o",
    "=cmd|' /C calc'!A0",
    "<img src=x onerror=alert(1)>",
    "漢字 é ±\n†",
    "[x](y) `z`",
)
DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage[margin=2cm]{geometry}\usepackage{booktabs}
\begin{document}
%s
\end{document}"""


def plain(text: str, kind: str) -> str:
    """A table without what its format does to the signs."""
    for sign, written in {"§": "\\S", "‡": "\\ddagger", "†": "\\dagger"}.items():
        text = text.replace(written, sign)
    text = re.sub(r"[\\${}^]", "", text).replace("--", "–") if kind == "tex" else text
    return text.replace("\\", "")


@pytest.mark.parametrize("kind", ["tex", "md", "html"])
def test_what_failed_is_shown_and_counted(faulty, kind):
    found, text = content(faulty), plain(FORMATS[kind](faulty), kind)
    assert found.columns == content(replace(faulty, records=faulty.records.assign(status="ok", value=1.0))).columns
    assert {model: len(rows) for model, rows in found.sections.items()} == {MODELS[0]: 9, MODELS[1]: 11}
    cells = {(m, row.method, e.measure): e for m, rows in found.sections.items() for row in rows for e in row.entries}
    for row in faulty.summary.itertuples():
        cell = cells[row.model, row.method, row.measure]
        assert (cell.n, cell.failed, "‡" in cell.marks) == (row.n, row.failed, row.failed > 0)
        assert (cell.number == "–") == (row.n == 0) and (row.n or not (cell.place or cell.alike))
    assert text.count("–‡") == 9 + 11 * 8 + 1  # a metric of one model, all of the other, and the caption
    clauses = (
        "Failed: deletion 120 of 120 (every method); insertion 69 of 120 (",
        "pointing_game, energy_inside 66 of 120 each (",
        "ms, x fwd, fwd, bwd 11 of 20 each (",
        "constant (degenerate) and rank nothing; their values count: edge_map 2 of 12",
    )
    for words in clauses:
        assert words in text, words
    assert text.count("edge_map§") == 1 and "n = 4 to 6;" in text


def test_a_real_run_shows_its_failures_and_nothing_that_was_refused(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "noise.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(photos / "flat.png")
    (photos / "broken.png").write_bytes(b"no image")
    spec = BenchmarkSpec(
        models=("demo/cnn",), methods=("cam", "edge_map", "gradient_rollout"), metrics=("sparseness", "energy_inside"),
        data=str(photos), timing=False,
    )  # fmt: skip
    text = table(run_benchmark(spec, tmp_path / "run").folder, "md")
    head, cam, edges = (line for line in text.splitlines() if line.startswith(("| method", "| cam", "| edge_map")))
    assert head == "| method | sparseness ↑ |" and "gradient_rollout" not in text
    assert "‡" in cam and "§" not in cam and "| edge_map§ |" in edges
    assert "Failed: sparseness 2 of 6 (every method)" in text and "edge_map 1 of 3" in text


def test_marks_follow_means_and_tests(synthetic):
    run = Gallery.open(synthetic)
    found = content(run)
    for model, rows in found.sections.items():
        for column, measure in enumerate(found.columns[:4]):
            cells = {row.method: row.entries[column] for row in rows}
            printed = {name: float(cell.number) for name, cell in cells.items()}
            best = (min if measure == "deletion" else max)(printed.values())
            assert {name for name, cell in cells.items() if cell.place == 1} == {
                n for n, v in printed.items() if v == best
            }
            values = run.records[(run.records.model == model) & (run.records.measure == measure)]
            values = values.pivot(index="image", columns="method", values="value")
            means = values.mean() * (-1 if measure == "deletion" else 1)
            winner = means.idxmax()
            others = [name for name in values if name != winner]
            gaps = [values[name] - values[winner] for name in others]
            p = multipletests([1.0 if not gap.any() else wilcoxon(gap).pvalue for gap in gaps], method="holm")[1]
            same = {name for name, value in zip(others, p, strict=True) if value >= 0.05}
            same -= {name for name, value in printed.items() if value == best}
            assert {name for name, cell in cells.items() if cell.alike} == same, (model, measure)


def test_controls_come_last_and_missing_pairs_are_not_zero(synthetic):
    rows = table(synthetic, "tex").splitlines()
    names = [
        line.split(" & ")[0].replace(r"\_", "_") for line in rows if line.split(" & ")[0].replace(r"\_", "_") in METHODS
    ]
    assert names[6:9] == ["center_map", "edge_map", "random_map"] and names[-3:] == names[6:9]
    assert len(names) == 9 + 11


@pytest.mark.parametrize("kind", ["tex", "md", "html"])
def test_the_caption_says_what_the_numbers_are(synthetic, kind):
    text = table(synthetic, kind).replace("\\", "")
    for words in (
        "6 images of",
        "protocol grid14",
        "seed 0",
        "n = 6",
        "batch 1",
        "bootstrap 95",
        "passes per image",
        "Holm",
    ):
        assert words in text, words
    assert "†" in text or "dagger" in text


def test_the_caption_of_a_run_on_files_says_so(synthetic):
    run = Gallery.open(synthetic)
    run.manifest["spec"]["data"] = ["/tmp/cat.png"]
    assert "6 images from files, protocol" in FORMATS["md"](run) and "cat.png" not in FORMATS["md"](run)


def test_peak_memory_has_a_column_when_a_run_has_it():
    assert number(3e6, "peak_bytes") == "3.0"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_break_a_format(name):
    plain = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", escape(name)
    )
    assert not re.search(r"(?<!\\)[&%#_{}~^<>|\n]", plain.replace(r"$\pm$", "").replace(r"$\dagger$", ""))
    assert not re.search(r"(?<!\\)[|<>`\[\]*\n]", escape_markdown(name))
    assert str(_safe(name))[0] not in "=+-@"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1"])
def test_no_cell_is_a_formula(text):
    assert _safe(text) == f"'{text}"
    assert _safe(-1.5) == -1.5 and _safe("a=b") == "a=b"


class Reader(HTMLParser):
    """Counts cells and refuses tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.tags = [], 0, set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        self.cells += tag == "td"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_names_stay_text(synthetic, tmp_path):
    reader = Reader()
    reader.feed(table(synthetic, "html"))
    assert not reader.open and reader.cells == (9 + 11) * (4 + 4 + 1)
    shutil.copytree(synthetic, tmp_path / "run")
    manifest = tmp_path / "run" / "run.json"
    manifest.write_text(manifest.read_text().replace('"data": "photos"', '"data": "<script>x</script>|$_%"'))
    reader = Reader()
    reader.feed(table(tmp_path / "run", "html"))
    assert "script" not in reader.tags


def test_csv_has_every_value_and_its_marks(synthetic):
    rows = list(csv.DictReader(io.StringIO(table(synthetic, "csv"))))
    assert {row["model"] for row in rows} == set(MODELS)
    assert {row["place"] for row in rows} == {"0", "1", "2"} and {row["alike"] for row in rows} == {"0", "1"}
    assert all(row["place"] == "0" for row in rows if row["measure"].startswith(("latency", "passes")))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_within_the_page(synthetic, faulty, tmp_path):
    letters = " ".join(escape(chr(code)) for code in range(0x20, 0x180))
    text = table(synthetic, "tex") + FORMATS["tex"](faulty) + " ".join(map(escape, HOSTILE)) + letters
    (tmp_path / "paper.tex").write_text(DOCUMENT % text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    table_part = done.stdout
    assert "Overfull \\hbox" not in table_part, table_part[-2000:]


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_file_holds_what_its_ending_says(synthetic, tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    for named in ([], [kind]):
        done = CliRunner().invoke(app, ["table", str(synthetic), *named, "-o", str(path)])
        assert done.exit_code == 0, done.output
        assert path.read_text(encoding="utf-8") == table(synthetic, kind)
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["md", "-o", "t.tex"], "the ending is not that of md, which was asked for"),
        (["-o", "t.txt"], "the ending must be .tex, .csv, .md, .html"),
        (["txt", "-o", "t.tex"], "unknown table format 'txt'"),
    ],
)
def test_a_file_of_another_ending_is_not_written(synthetic, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttnCompareError, match=re.escape(says)) as error:
        CliRunner().invoke(app, ["table", str(synthetic), *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir()) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["tex", "md", "html"])
def test_cells_are_what_the_caption_says_they_are(synthetic, kind):
    text = table(synthetic, kind).replace(r"$\pm$", "±").replace("<small>", "").replace(r"{\tiny", "")
    assert "mean ± half the bootstrap 95" in text
    assert len(re.findall(r"\d[^|&\d]*±\s?0\.\d{3}", text)) > 5
