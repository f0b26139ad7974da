"""The report in a real Chromium: every control is used and its effect is looked for in the page."""

import shutil

import numpy as np
import pytest
from PIL import Image

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.reporting.html import write_report

pytestmark = pytest.mark.browser
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=window.hacked=1>.png"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    photos = path / "photos"
    photos.mkdir()
    for number, name in enumerate(["a.png", HOSTILE]):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / name)
    spec = BenchmarkSpec(models=("demo/cnn", "demo/vit"), methods=("cam", "gradient_rollout", "saliency", "center_map"),
                         data=str(photos), protocol="rise-fast", repeats=3, timing_seconds=0.0, save_maps=True)  # fmt: skip
    run_benchmark(spec, path / "run")
    return write_report(path / "run")


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium was found; install it (Debian: apt-get install chromium) to run the browser tests")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, report):
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.problems, opened.requested = [], []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("console", lambda message: opened.problems.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: opened.requested.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert opened.problems == []
    assert [url for url in opened.requested if not url.startswith(("file:", "data:"))] == []
    opened.close()


def opacity(page):
    return page.eval_on_selector("img.map", "image => getComputedStyle(image).opacity")


def test_slider_and_buttons_change_what_is_drawn(page):
    assert opacity(page) == "0.55"
    page.eval_on_selector("#opacity", "s => { s.value = 20; s.dispatchEvent(new Event('input')); }")
    assert opacity(page) == "0.2"
    page.click("button[data-mode=map]")
    assert opacity(page) == "1"
    as_map = page.locator(".gallery").first.screenshot()
    page.click("button[data-mode=image]")
    assert opacity(page) == "0"
    assert page.locator(".gallery").first.screenshot() != as_map
    assert page.get_attribute("button[data-mode=image]", "aria-pressed") == "true"


def test_pickers_choose_model_method_and_image(page):
    assert page.locator("#view h3").count() == 2
    page.select_option("#model", "demo/vit")
    assert page.locator("#view h3").all_inner_texts()[0].startswith("demo/vit")
    assert page.locator("#view h3").count() == 1
    page.select_option("#method", "gradient_rollout")
    assert page.locator("#view figcaption b").all_inner_texts() == ["gradient_rollout"]
    before = page.get_attribute("img.map", "src")
    page.select_option("#image", index=1)
    assert page.get_attribute("img.map", "src") != before
    assert "method=gradient_rollout" in page.url


def test_keyboard_moves_through_the_images(page):
    first = page.input_value("#image")
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    second = page.input_value("#image")
    assert second != first
    page.keyboard.press("ArrowRight")
    assert page.input_value("#image") == first


def test_a_link_keeps_its_state(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri() + "#model=demo%2Fcnn&method=cam&mode=map&opacity=30")
    assert page.input_value("#model") == "demo/cnn" and page.input_value("#method") == "cam"
    assert opacity(page) == "1" and page.input_value("#opacity") == "30"
    page.close()


def test_tables_sort_and_charts_are_drawn(page):
    body = page.locator("table.ranking").first.locator("tbody tr td:first-child")
    page.locator("table.ranking").first.locator("th button", has_text="method").click()
    assert body.all_inner_texts() == sorted(body.all_inner_texts())
    page.locator("table.ranking").first.locator("th button", has_text="deletion").click()
    values = (
        page.locator("table.ranking")
        .first.locator("tbody tr td:nth-child(2)")
        .evaluate_all("cells => cells.map(cell => parseFloat(cell.dataset.value))")
    )
    assert values == sorted(values)
    assert page.locator(".chart .main-svg").count() >= page.locator(".chart").count() > 0


def test_hostile_names_run_nothing(page):
    page.select_option("#image", HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_a_phone_needs_no_sideways_scrolling(browser, report):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(report.as_uri())
    page.wait_for_selector(".chart .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
