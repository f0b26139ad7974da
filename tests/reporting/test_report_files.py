import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attncompare as ac
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.errors import ResultFormatError, UnknownNameError
from attncompare.metrics.user_protocols import get_protocol
from attncompare.reporting.entries import Entries
from attncompare.reporting.figures import draw
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.html import write_report
from attncompare.reporting.overlay import colorize, is_signed, overlay, to_unit
from attncompare.reporting.sections import section
from attncompare.reporting.tables import table
from attncompare.reporting.tables.content import content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    spec = BenchmarkSpec(
        models=("demo/cnn", "demo/vit"),
        methods=("cam", "gradient_rollout", "hires_cam", "center_map"),
        metrics=("insertion", "deletion", "pointing_game"),
        limit=3,
        repeats=3,
        timing_seconds=0.0,
        save_maps=True,
    )
    run_benchmark(spec, path)
    return path


def test_table_marks_the_best_mean_of_each_metric(folder):
    run = Gallery.open(folder)
    text = table(folder, "tex")
    for model in run.models:
        rows = run.summary[(run.summary.model == model) & (run.summary.measure == "deletion") & (run.summary.n > 0)]
        best = rows["mean"].min()
        assert rf"\textbf{{{best:.3f}}}" in text
    assert r"\multicolumn{9}{l}{\textbf{demo/cnn}}" in text
    assert "3 images of 'shapes', protocol rise" in text
    assert text.count(r"\\") == 1 + 2 + len(re.findall(r"^(cam|gradient|hires|center)", text, re.M))


def test_table_columns_follow_the_spec(folder):
    head = next(line for line in table(folder, "md").splitlines() if line.startswith("| method"))
    assert head == "| method | insertion ↑ | deletion ↓ | pointing_game ↑ | ms | x fwd | fwd | bwd | MB |"


def test_csv_holds_refusals_with_their_reasons_and_no_formula(folder):
    rows = list(csv.DictReader(io.StringIO(table(folder, "csv"))))
    refused = [row for row in rows if row["unsupported"] != "0"]
    assert {(row["model"], row["method"]) for row in refused} == {("demo/cnn", "gradient_rollout"), ("demo/vit", "cam")}
    assert all(row["detail"] and not row["mean"] for row in refused)
    assert not any(value[:1] in ("=", "+", "@") for row in rows for value in row.values())


def test_figure_without_maps_says_how_to_get_them(tmp_path):
    run_benchmark(BenchmarkSpec(models=("demo/cnn",), methods=("cam",), limit=1, timing=False), tmp_path)
    with pytest.raises(ResultFormatError, match="--save-maps"):
        draw(tmp_path, "grid")
    with pytest.raises(UnknownNameError, match="did you mean grid"):
        draw(tmp_path, "gird")
    page = write_report(tmp_path).read_text()
    assert "--save-maps" in page and 'id="image"' not in page


def test_overlay_keeps_the_hot_spot_and_the_photo():
    image = np.full((64, 64, 3), 128, np.uint8)
    values = np.zeros((8, 8), np.float32)
    values[2, 5] = 1
    drawn = overlay(image, values, opacity=0.6).astype(int).sum(axis=2)
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert (row // 8, column // 8) == (2, 5)
    weak = colorize(values, (64, 64))[-1, 0].astype(int).sum()
    assert drawn[-1, 0] == pytest.approx(
        0.8 * 3 * 128 + 0.2 * weak, abs=3
    )  # a third of the opacity where nothing is seen
    signed = overlay(image, values - 0.5 * (values == 0) * (np.arange(8) < 2))
    assert (signed[-1, -1] == 128).all()  # no evidence for or against: the photo itself


def test_signed_maps_are_centered():
    values = np.array([[-1, 0], [0, 0.5]], np.float32)
    assert is_signed(values) and to_unit(values)[0, 1] == 0.5
    assert not is_signed(np.array([[-0.01, 1.0]], np.float32))


def test_report_holds_every_map_and_reason(folder):
    page = write_report(folder).read_text()
    blocks = re.findall(r'<script type="application/json" id="entry-\d+">(.*?)</script>', page, re.S)
    entries = [json.loads(block) for block in blocks]
    assert [entry["image"] for entry in entries] == [f"shapes-test-{i:05d}" for i in range(3)]
    for entry in entries:
        cnn, vit = entry["models"]
        assert {one["method"] for one in cnn["maps"]} == {"cam", "hires_cam", "center_map"}
        assert {one["method"] for one in vit["maps"]} == {"gradient_rollout", "hires_cam", "center_map"}
        for one in cnn["maps"] + vit["maps"]:
            large = one["levels"].startswith("data:image/png;base64,")
            assert large or len(base64.b64decode(one["levels"])) % np.prod(one["grid"]) == 0
        assert [one["method"] for one in cnn["missing"]] == ["gradient_rollout"]
        assert "it has no softmax attention between image positions" in cnn["missing"][0]["reason"]
        assert {one["kind"] for one in cnn["layers"]} == {"channel"} and len(vit["layers"]) == 6
    assert (
        "it has no softmax attention between image positions" in page[: page.index('<script type="application/json"')]
    )
    assert not re.search(r'(?:src|href)="(?!data:)', page[: page.index("<script")])


def test_the_same_run_gives_the_same_page(folder):
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


@pytest.mark.parametrize(
    ("source", "shown"), [({"commit": "0123456789ab"}, " (commit 0123456789ab), "), ({"commit": ""}, ", "), ({}, ", ")]
)
def test_the_page_says_which_version_of_the_package_made_the_numbers(folder, tmp_path, source, shown):
    """Runs of an installed package have no commit, those of earlier versions do not even name one."""
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    manifest = json.loads((copy / "run.json").read_text())
    assert manifest["environment"]["versions"]["attncompare"] == ac.__version__
    del manifest["environment"]["commit"]
    manifest["environment"] |= source
    (copy / "run.json").write_text(json.dumps(manifest))
    versions = re.search("<dt>versions</dt><dd>(.*)</dd>", write_report(copy).read_text())[1]
    assert f", attncompare {ac.__version__}{shown}captum " in versions


def test_the_policy_names_every_script_of_the_page_and_no_other(folder):
    page = write_report(folder).read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page).group(1).replace("&#39;", "'")
    run = re.findall(r"<script(?: type=.text/plain. id=.plotly.)?>(.*?)</script>", page, re.S)
    hashes = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in run]
    assert re.findall(r"'sha256-(.*?)'", policy) == hashes and len(hashes) == 2
    assert "default-src 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy
    assert not re.search(r"<[^>]+ on\w+=", page[: page.index("<script")])


def test_few_images_are_said_to_tell_nothing_apart(folder):
    page = write_report(folder).read_text()
    assert "are not told apart there" in page and "do not differ" not in page
    assert "‡ without" not in page and "§ with" not in page  # nothing failed and no map is constant
    assert (
        "With 3 images no test can tell two methods apart: the smallest p that it can give, 0.25, times 3 pairs" in page
    )


def test_the_page_of_a_timing_names_no_images_and_no_scores(tmp_path):
    spec = BenchmarkSpec(models=("demo/cnn",), methods=("cam",), repeats=3, timing_seconds=0, timing_only=True)
    run_benchmark(spec, tmp_path)
    page = write_report(tmp_path).read_text()
    text = page[: page.index("<summary>Everything that decides")]
    assert "First images of “shapes”, timed and not scored: results</h2>" in text
    assert not re.search(r"<dt>protocol|bootstrap|Wilcoxon|\d images of|<ul>", text)


def test_what_failed_has_its_place_in_the_rankings_with_its_reason(faulty):
    manifest = json.loads(json.dumps(faulty.manifest))
    manifest["spec"] |= {"data": "shapes"}
    manifest["protocol"] = vars(get_protocol("grid14"))
    manifest["models"] = {name: {"mean": [0.5, 0.5, 0.5], "size": [48, 48]} for name in faulty.models}
    faulty = replace(faulty, manifest=manifest)
    shown, tables = section(Entries.of(faulty), 0), content(faulty).sections
    names = [head["name"].split()[0] for head in shown["heads"]]
    assert names[:2] == ["deletion", "insertion"]
    first, second = shown["rankings"]
    assert "lead (insertion " in first["finding"].replace("leads", "lead")  # deletion has no value
    best = faulty.summary[(faulty.summary.model == first["model"]) & (faulty.summary.measure == "insertion")]
    assert first["rows"][0]["method"] == best.sort_values("mean").method.iloc[-1]
    assert second["finding"] == ""
    for ranking in shown["rankings"]:
        rows, of_table = ranking["rows"], {row.method: row for row in tables[ranking["model"]]}
        assert {row["method"] for row in rows} == set(of_table) and len(rows) == len(of_table)
        for row in rows:
            assert row["constant"] == of_table[row["method"]].constant
            for cell, entry in zip(row["cells"], of_table[row["method"]].entries[: len(names)], strict=False):
                assert entry is not None and ("‡" in cell["marks"]) == (entry.failed > 0 and entry.n > 0)
                assert (cell["text"] == "failed") == (entry.n == 0) == (cell["title"] == "boom")
    assert "‡ without the images that failed; § with images" in shown["marks"]
    assert {cell["marks"] for row in shown["rankings"][0]["rows"] for cell in row["cells"]} == {"", "‡"}
    assert {row["cells"][names.index("insertion")]["text"] for row in shown["rankings"][1]["rows"]} == {"failed"}


def test_scores_of_objects_in_images_without_any_are_no_columns(tmp_path):
    """Although images failed too."""
    (tmp_path / "photos").mkdir()
    for name, size in (("a", 64), ("b", 64)):
        Image.new("RGB", (size, size), (200, 90, len(name))).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    spec = BenchmarkSpec(
        models=("demo/cnn",), methods=("cam", "edge_map"), metrics=("energy_inside", "sparseness"),
        data=str(tmp_path / "photos"), timing=False,
    )  # fmt: skip
    run = Gallery.open(run_benchmark(spec, tmp_path / "run").folder)
    assert {"failed", "unsupported"} <= set(run.records.status)
    shown = section(Entries.of(run), 0)
    assert [head["name"] for head in shown["heads"]] == ["sparseness ↑"]
    assert {row["method"] for row in shown["rankings"][0]["rows"]} == {"cam", "edge_map"}
