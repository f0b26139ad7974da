"""A run that no model made for figures and tables; a report with everything in it, and a real browser to read it with."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reading import FAILED, HOSTILE, REASON, until
from references.synthetic_run import MODELS, synthetic_run

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.reporting import html
from attncompare.reporting.gallery import Gallery

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
NO_BROWSER = "no Chromium or Chrome was found on the PATH; install one (Debian: apt-get install chromium) to run these"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(NO_BROWSER)
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing; pip install playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs on the same three images: of the model's own choice by pixels, and of class 1 by cells."""
    folder = tmp_path_factory.mktemp("report")
    photos = folder / "photos"
    photos.mkdir()
    for number, name in enumerate(["a.png", "b.png", HOSTILE]):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        noise[10 * number : 10 * number + 20, 8:40] = (250, 40, 40 * number)
        Image.fromarray(noise).save(photos / name)
    shared = {
        "models": ("demo/cnn", "demo/vit"),
        "data": str(photos),
        "save_maps": True,
        "repeats": 3,
        "timing_seconds": 0,
    }
    methods = ("cam", "grad_cam", "gradient_rollout", "saliency", "center_map", "random_map")
    first = BenchmarkSpec(
        **shared, methods=methods, metrics=("deletion", "insertion", "sparseness"), protocol="rise-fast"
    )
    second = BenchmarkSpec(**shared, methods=("cam", "saliency"), protocol="grid14", target=1, timing=False)
    run_benchmark(first, folder / "first")
    run_benchmark(second, folder / "second")
    return folder / "first", folder / "second"


def with_a_failure(run):
    """The same run, had one method failed on one image."""
    model, method, image = FAILED
    if not {method} & set(run.records[run.records.target >= 0].method) or run.manifest["spec"]["target"] != "argmax":
        return run
    rows = run.records.copy()
    hit = (rows.model == model) & (rows.method == method) & (rows.image == image)
    rows.loc[hit, ["value", "curve"]] = None
    rows.loc[hit, "status"], rows.loc[hit, "detail"] = "failed", REASON
    maps = dict(run.maps)
    kept = [{n: v for n, v in saved.maps.items() if n != image} for saved in maps[model, method]]
    maps[model, method] = [replace(one, maps=m) for one, m in zip(maps[model, method], kept, strict=True)]
    return replace(run, records=rows, maps=maps)


@pytest.fixture(scope="session")
def report(runs):
    plain = Gallery.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html.Gallery, "open", staticmethod(lambda folder: with_a_failure(plain(folder))))
        return html.write_report(runs[0], also=runs[1:])


@pytest.fixture
def open_page(browser):
    """Open a file at a size; at the end no error was met and nothing but files was asked for."""
    opened = []

    def visit(path, state="", size=(1200, 900), **options):
        page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), **options)
        page.problems, page.requested = [], []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(path.as_uri() + state)
        until(
            page, "document.querySelector('#apart-view svg, #apart-view p') && document.querySelector('#inside-view *')"
        )
        opened.append(page)
        return page

    yield visit
    for page in opened:
        assert page.problems == []
        assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
        page.close()


@pytest.fixture
def page(open_page, report):
    return open_page(report)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """The folder of a run from formulas alone: leave it as found."""
    return synthetic_run(tmp_path_factory.mktemp("synthetic"))


def failing(records: pd.DataFrame, hit: pd.Series) -> pd.DataFrame:
    """The same records, had some of their values failed."""
    status, value = records.status.where(~hit, "failed"), records.value.where(~hit)
    curve, detail = records.curve.where(~hit, None), records.detail.where(~hit, "boom")
    return records.assign(status=status, value=value, curve=curve, detail=detail)


@pytest.fixture(scope="session")
def faulty(synthetic) -> Gallery:
    """The run, had a metric failed everywhere, a model wholly, its timing too, two methods partly, and maps constant."""
    run = Gallery.open(synthetic)
    rows, second, few = run.records, MODELS[1], ["photo_0.png", "photo_3.png"]
    rows = failing(rows, rows.measure == "deletion")
    rows = failing(rows, (rows.method == "grad_cam") & (rows.measure == "insertion") & rows.image.isin(few))
    rows = failing(rows, (rows.method == "saliency") & (rows.measure == "insertion") & (rows.image == "photo_1.png"))
    rows = failing(rows, rows.model == second)
    constant = (rows.model == MODELS[0]) & (rows.method == "edge_map") & rows.image.isin(few)
    return replace(run, records=rows.assign(degenerate=rows.degenerate | constant))
