"""Figures from a run of formulas: same bytes, embedded fonts, colors that survive print, choices that are obeyed."""

import re
import shutil
import subprocess
import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from references.synthetic_run import METHODS, MODELS, synthetic_run
from scipy.stats import spearmanr
from skimage.color import rgb2lab
from typer.testing import CliRunner

import attncompare as ac
from attncompare.cli import app
from attncompare.errors import ResultFormatError, SpecError, UnknownNameError
from attncompare.maps import resize_map
from attncompare.reporting.agreement import correlations, least_alike
from attncompare.reporting.figures import COLORS, VENUES, draw, kinds, save_figure, without_values
from attncompare.reporting.figures._base import only
from attncompare.reporting.figures._looks import looks
from attncompare.reporting.figures.agreement import _matrix
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.overlay import DIVERGING, SEQUENTIAL

ENDINGS = ("pdf", "svg", "png")


def lightness(colors):
    return rgb2lab(np.array([to_rgb(color) for color in colors])[None])[0, :, 0]


@pytest.mark.parametrize("number", range(len(kinds.names())), ids=kinds.names())
def test_the_same_run_gives_the_same_bytes(synthetic, tmp_path, number):
    kind, ending = kinds.names()[number], ENDINGS[number % 3]
    first, second = (save_figure(draw(synthetic, kind, venue="cvpr"), tmp_path / f"{i}.{ending}") for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="pdffonts (poppler-utils) is not installed")
def test_fonts_of_a_pdf_are_embedded_truetype(synthetic, tmp_path):
    path = save_figure(draw(synthetic, "cost", venue="cvpr"), tmp_path / "cost.pdf")
    lines = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    assert lines
    for line in lines:
        assert "TrueType" in line and re.search(r"\s+yes\s+yes\s+(yes|no)\s", line), line


def test_an_svg_needs_no_font(synthetic, tmp_path):
    text = save_figure(draw(synthetic, "cost", venue="cvpr"), tmp_path / "cost.svg").read_text()
    assert "<text" not in text and "font-family" not in text


def test_methods_stay_apart_in_gray():
    found = looks(METHODS)
    assert lightness(COLORS).max() < 80  # against white paper
    for one, other in combinations(found, 2):
        apart = abs(np.subtract(*lightness([found[one]["color"], found[other]["color"]]))) > 8
        assert apart or found[one]["linestyle"] != found[other]["linestyle"], (one, other)
        shapes = [(found[name]["marker"], found[name].get("markerfacecolor")) for name in (one, other)]
        assert apart or shapes[0] != shapes[1], (one, other)


def test_color_maps_are_perceptually_ordered():
    sequential = lightness(colormaps[SEQUENTIAL](np.linspace(0, 1, 64))[:, :3])
    assert (np.diff(sequential) > 0).all() and np.diff(sequential).max() < 3
    diverging = lightness(colormaps[DIVERGING](np.linspace(0, 1, 65))[:, :3])
    assert diverging.argmax() == 32
    assert abs(diverging - diverging[::-1]).max() < 14


def test_only_what_was_asked_for_is_shown(synthetic):
    figure = draw(synthetic, "bars", models=[MODELS[0]], methods=["cam", "edge_map"], measures=["insertion"])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["edge_map", "cam"]
    assert len(figure.axes) == 1
    pictures = draw(synthetic, "grid", methods=["cam", "saliency"], images=["photo_3.png"]).axes
    assert len(pictures) == 3 + 2  # image, cam, saliency of the CNN; image, saliency of the transformer


@pytest.mark.parametrize("option", ["models", "methods", "images", "measures"])
def test_names_that_the_run_lacks_are_refused(synthetic, option):
    with pytest.raises(UnknownNameError, match="nonsense"):
        draw(synthetic, "grid", **{option: ["nonsense"]})


def test_every_kind_says_what_it_lacks(tmp_path):
    bare = synthetic_run(tmp_path, metrics=(), maps=False)
    for kind in kinds.names():
        with pytest.raises(ResultFormatError, match=r"(no|not) .*(run|add)"):
            draw(bare, kind)


def test_other_endings_and_venues_are_refused(synthetic, tmp_path):
    with pytest.raises(SpecError, match="ending"):
        save_figure(draw(synthetic, "curves"), tmp_path / "curves.jpg")
    with pytest.raises(UnknownNameError, match="did you mean cvpr"):
        draw(synthetic, "curves", venue="cvpn")


def test_the_public_module_is_the_package():
    assert ac.figures.draw is draw


def test_agreement_is_the_rank_correlation_of_the_maps(synthetic):
    run, names = Gallery.open(synthetic), [(MODELS[0], "cam"), (MODELS[0], "hires_cam"), (MODELS[0], "edge_map")]
    found = correlations(run, "photo_2.png", names)
    maps = [resize_map(torch.from_numpy(run.map(*name, "photo_2.png"))[None], (64, 64))[0] for name in names]
    for (i, one), (j, other) in combinations(enumerate(maps), 2):
        assert found.iat[i, j] == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic, abs=1e-6)
    cases = list(least_alike(run, names))
    assert [case[0] for case in cases] == sorted(case[0] for case in cases)
    worst = [correlations(run, f"photo_{i}.png", names).to_numpy().min() for i in range(6)]
    assert cases[0][0] == pytest.approx(min(worst)) and len(cases) == 6


def test_cells_too_small_for_numbers_keep_their_sign_in_print_without_color():
    names = [f"m{i}" for i in range(12)]
    table = pd.DataFrame(np.linspace(-1, 1, 144).reshape(12, 12), index=names, columns=names)
    axes = Figure(figsize=(2, 2)).add_subplot()
    _matrix(axes, table, 1.7)
    marked = {(int(x), int(y)) for x, y in (text.get_position() for text in axes.texts if text.get_text() == "−")}
    assert marked == {(x, y) for y, x in np.argwhere(table.to_numpy() < -0.05).tolist()}


def test_no_control_is_on_the_line_that_nothing_cheaper_beats(synthetic):
    run = Gallery.open(synthetic)
    free = run.records.method.isin(["random_map", "center_map", "edge_map"]) & (run.records.measure == "latency_median")
    cheap = replace(run, records=run.records.assign(value=run.records.value.mask(free, 1e-6)))
    for axes in kinds.get("cost").draw(cheap, VENUES["a4"]).axes[:2]:
        line, *points = axes.get_lines()
        costs = [point.get_xdata()[0] for point in points]
        assert [point.get_markerfacecolor() for point in points].count("none") == 3
        assert sorted(costs)[:3] == [1e-3] * 3 and min(line.get_xdata()) > 1e-3


def test_words_that_the_font_lacks_are_said_once(synthetic, tmp_path, monkeypatch):
    run = Gallery.open(synthetic)
    named = replace(run, records=run.records.assign(model=run.records.model + " 漢字"))
    named.manifest["spec"]["models"] = [f"{model} 漢字" for model in MODELS]
    monkeypatch.setattr(Gallery, "open", staticmethod(lambda folder: named))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        told = CliRunner().invoke(app, ["figure", str(synthetic), "bars", "-o", str(tmp_path / "b.png")])
    assert told.exit_code == 0 and told.stderr.count("has no 字 漢: empty boxes are drawn") == 1
    assert not [one for one in seen if "Glyph" in str(one.message)]


def test_what_failed_everywhere_is_named_beside_the_figure(synthetic, faulty, tmp_path, monkeypatch):
    assert without_values(synthetic) == ""
    monkeypatch.setattr(Gallery, "open", staticmethod(lambda folder: faulty))
    first, second = MODELS
    said = f"saliency on {second}, deletion of cam on {first}, deletion of saliency on {first}"
    said = f"not shown, since every value failed: {said}; attncompare table counts them"
    assert without_values(synthetic, methods=["saliency", "cam"]) == said
    assert "and 16 more;" in without_values(synthetic)  # of 9 and 11 methods
    assert without_values(synthetic, models=[first], measures=["insertion"]) == ""
    command = ["figure", str(synthetic), "bars", "-o", str(tmp_path / "b.png"), "--method", "saliency"]
    told = CliRunner().invoke(app, [*command, "--metric", "insertion"])
    assert told.exit_code == 0 and f"failed: saliency on {second}; attncompare table" in told.stderr
    told = CliRunner().invoke(app, [*command, "--metric", "insertion", "--model", first])
    assert told.exit_code == 0 and "failed" not in told.stderr


def test_a_run_with_too_few_maps_is_not_told_to_save_them(synthetic):
    one = Gallery.open(synthetic)
    one.manifest["spec"]["save_maps"] = True
    for kind, methods in (("agreement", ["cam"]), ("failure-cases", ["cam", "edge_map"])):
        with pytest.raises(
            ResultFormatError, match="no two saved maps to compare; it was run with --save-maps, but too few"
        ):
            kinds.get(kind).draw(only(one, methods=methods), VENUES["a4"])


def test_no_curve_is_cut_off(synthetic):
    axes = draw(synthetic, "curves").axes
    low, high = axes[0].get_ylim()
    assert low == 0
    for panel in axes:
        assert panel.dataLim.y1 < high and panel.get_ylim() == (low, high)


def test_every_figure_of_a_study_can_be_had_by_its_name():
    named = [name for name in dir(ac.figures) if name.endswith("_figure")]
    assert len(named) >= 10 and all(callable(getattr(ac.figures, name)) for name in named)
    with pytest.raises(AttributeError, match="no attribute 'nothing_figure'"):
        _ = ac.figures.nothing_figure


def test_a_figure_taller_than_the_page_is_said_to_be_after_it_is_written(synthetic, tmp_path, monkeypatch):
    call = ["figure", str(synthetic), "agreement", "--venue", "cvpr", "-o", str(tmp_path / "a.png")]
    fits = CliRunner().invoke(app, call)
    assert fits.exit_code == 0 and not fits.stderr
    monkeypatch.setitem(VENUES, "cvpr", replace(VENUES["cvpr"], height=1.0))
    (tmp_path / "a.png").unlink()
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0 and (tmp_path / "a.png").exists()
    assert "a page of cvpr 1.0 in: choose fewer models or methods" in told.stderr
