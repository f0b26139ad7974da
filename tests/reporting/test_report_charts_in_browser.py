"""The charts, names and prints of a report on models with names as long and as odd as real ones."""

import json

import pytest
from reading import until
from references import synthetic_run as synthetic_runs

from attncompare.reporting.html import write_report

pytestmark = pytest.mark.browser

ODD = "mine <b>&$x$^{2}_%{y} <a href='x'>"
MODELS = (
    ODD,
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "timm/swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
    "timm/swin_tiny_patch4_window7_224.ms_in1k_ft_in1k",
    "torchvision/resnet50",
)


def a_run(folder, models, data):
    """A run of these models on images of the same names from a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_runs, "MODELS", models)
        patch.setattr(synthetic_runs, "IMAGES", synthetic_runs.IMAGES[: 3 if len(models) == 2 else 2])
        synthetic_runs.synthetic_run(folder)
    manifest = json.loads((folder / "run.json").read_text())
    manifest["spec"] |= {"data": data, "batch_size": 8}
    manifest["protocol"] |= {
        "name": "grid14",
        "version": 1,
        "cells": 14,
        "steps": 14,
        "deletion": "blur",
        "insertion": "blur",
    }
    manifest["protocol"] |= {"at_most_pixel_steps": False}
    manifest["environment"] |= {"gpu": "", "machine": "x86", "python": "3", "versions": {}}
    described = {"family": "cnn", "size": [48, 48], "weights_hash": "0" * 64, "mean": [0.5, 0.5, 0.5]}
    manifest["models"] = dict.fromkeys(models, described)
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def odd_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    second = a_run(folder / "second", MODELS[:2], "elsewhere/B")
    return write_report(a_run(folder / "first", MODELS, "here/A"), also=[second])


def chart(page, title):
    """The first chart under a head, drawn."""
    found = page.locator(".group", has=page.locator("h3", has_text=title)).first.locator(".chartbox").first
    found.scroll_into_view_if_needed()
    found.locator(".main-svg").first.wait_for()
    return found


@pytest.mark.parametrize("width", [390, 1280])
def test_every_model_of_the_agreement_is_named_letter_by_letter(open_page, odd_report, width):
    page = open_page(odd_report, size=(width, 900))
    drawn = chart(page, "Agreement between architectures")
    rows, columns = (drawn.locator(f".{axis}tick text") for axis in "yx")
    assert rows.count() == columns.count() == len(MODELS)
    assert {"".join(text.split()) for text in rows.all_text_contents()} == {"".join(name.split()) for name in MODELS}
    assert len(set(columns.all_text_contents())) == len(MODELS)
    cells = drawn.locator(".bglayer").first.bounding_box()
    assert cells["height"] >= 26 * len(MODELS) and cells["width"] >= width / 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.mouse.move(cells["x"] + 5, cells["y"] + cells["height"] - 5)
    drawn.locator(".hovertext text").first.wait_for()
    assert ODD in drawn.locator(".hovertext text").first.text_content().replace("\xa0", " ")
    assert drawn.locator("a").count() == 0


def test_heads_and_methods_break_at_underscores_and_spaces_only(open_page, odd_report):
    """`pointing_gam|e` once; the words of the first run's tables, which has ten columns."""
    broken = """() => [...document.querySelectorAll(".sortable th, .sortable td:first-child")].flatMap(cell => {
      const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
      while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[^\\s_]+/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, word.index);
        range.setEnd(texts.currentNode, word.index + word[0].length);
        if (range.getClientRects().length !== 1) found.push(word[0]);
      }
      return found;
    })"""
    page = open_page(odd_report, size=(900, 900))
    assert page.locator(".sortable th wbr").count() > 0 and "pointing_game ↑" in page.locator("th").all_inner_texts()
    assert page.evaluate(broken) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 900


def test_the_heading_follows_what_is_shown(open_page, odd_report):
    page = open_page(odd_report)
    drawn = chart(page, "Quality against cost")
    assert "of deletion against latency" in drawn.locator("h4").inner_text()
    drawn.locator("select").select_option(label="insertion against passes")
    assert "the Pareto front of insertion against passes" in drawn.locator("h4").inner_text()
    assert ODD in drawn.locator("h4").inner_text()


def test_images_of_one_name_are_told_apart_in_picker_and_link(open_page, odd_report):
    page = open_page(odd_report)
    names = page.locator("#image option").all_inner_texts()
    assert names == [f"photo_{i}.png (A)" for i in range(2)] + [f"photo_{i}.png (B)" for i in range(2)] + [
        "photo_2.png"
    ]
    page.select_option("#image", label="photo_1.png (B)")
    until(page, "location.hash.includes('photo_1.png+%28B%29')")
    with page.expect_event("load"):  # as a link that is put into the open tab
        page.evaluate("location.hash = '#image=photo_0.png+%28B%29&view=map'")
    until(page, "state.image === 2 && state.view === 'map' && state.entry")
    assert page.locator("#view h3").count() == 2


def test_print_has_every_chart_in_light_colors_and_no_controls(open_page, odd_report):
    page = open_page(odd_report, color_scheme="dark")
    page.click("#theme")
    page.click("#theme")
    sizes = (
        "[...document.querySelectorAll('.chart .main-svg:first-child')].map(one => one.getBoundingClientRect().width)"
    )
    page.evaluate(
        "addEventListener('afterprint', () => { window.charts = document.querySelectorAll('.chart.drawn').length; })"
    )
    inks = "new Set([...document.querySelectorAll('.chart .xtick text')].map(one => getComputedStyle(one).fill)).size"
    page.evaluate(
        f"addEventListener('beforeprint', () => {{ window.printed = [Math.max(...{sizes}), {inks}, "
        "getComputedStyle(document.querySelector('.xtick text')).fill]; })"
    )
    page.pdf()
    until(page, "window.charts")
    assert page.evaluate("charts === document.querySelectorAll('.chart').length")
    assert page.evaluate("printed") == [690, 1, "rgb(28, 31, 36)"]
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls button:visible, input:visible, select.variants:visible, #theme:visible").count() == 0
