"""What the page draws is what was computed and scored: its pictures against those of the library, pixel by pixel."""

import shutil

import numpy as np
import pytest
from reading import until

from attncompare.benchmark.layer_maps import LayerMaps
from attncompare.data.images import to_tensor
from attncompare.metrics.perturbation import baseline_images, change_step, ends_of
from attncompare.reporting.entries import Entries
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.html import BESIDE, write_report
from attncompare.reporting.overlay import colorize, to_unit

pytestmark = pytest.mark.browser

STEPS = """async ([number, model, method, measure]) => {
    const target = data.images.flatMap(one => one.targets).find(one => one.entry === number), run = data.runs[target.run];
    const entry = await load(number), shown = entry.models.find(one => one.model === model);
    const map = shown.maps.find(one => one.method === method), how = run.curves.find(one => one.measure === measure);
    const [H, W] = shown.size, steps = await stepsOf(run, shown, map, how);
    const canvas = document.createElement("canvas"), [from, to] = await ends(entry, shown, how);
    drawChanged(canvas, from, to, steps, 5);
    const drawn = canvas.getContext("2d").getImageData(0, 0, W, H).data;
    return {steps: [...steps], drawn: [...drawn], curve: [...curveOf(map.curves[measure])], size: [H, W]};
}"""
COLORED = """async ([number, model, method]) => {
    const entry = await load(number), shown = entry.models.find(one => one.model === model);
    const map = shown.maps.find(one => one.method === method), canvas = document.createElement("canvas");
    paint(canvas, await fullMap(map, shown.size), ...shown.size, map.scale, map.signed);
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""


@pytest.fixture(scope="module")
def shown(runs):
    """Every map of both runs that is not left out on purpose: (number of the entry, run, model, method, image)."""
    galleries, number, found = [Gallery.open(path) for path in runs], 0, []
    for run in galleries:
        for image in run.images:
            for model in run.models:
                found += [(number, run, model, method, image) for method in run.methods_of(model)]
            number += 1
    return [one for one in found if (one[3], one[4]) != ("saliency", "a.png")]


def test_the_page_changes_the_pixels_that_were_scored(page, shown):
    seen = set()
    for number, run, model, method, image in shown:
        entries = Entries.of(run)
        values, picture = run.map(model, method, image), run.picture(model, image)
        for measure, curve in entries.curves.items():
            found = page.evaluate(STEPS, [number, model, method, measure])
            expected = change_step(torch_of(values), picture.shape[:2], entries.protocol, entries.seed).numpy()
            wrong = (np.array(found["steps"]).reshape(found["size"]) != expected).mean()
            # Cells and maps of the image's size are exact; of others bilinear values may swap near ties.
            exact = values.shape == picture.shape[:2] or entries.protocol.cells is not None
            assert wrong <= (0 if exact else 0.003), (model, method, image, wrong)
            start, finish = ends_of(entries.protocol, curve)
            after = np.where((expected <= 5)[..., None], *[end(run, model, picture, kind) for kind in (finish, start)])
            drawn = np.array(found["drawn"]).reshape(*found["size"], 4)
            assert (drawn[..., 3] == 255).all()
            assert (drawn[..., :3] != after).any(axis=2).mean() <= wrong
            row = run.records[(run.records.model == model) & (run.records.method == method)]
            row = row[(row.image == image) & (row.measure == measure)].iloc[0]
            np.testing.assert_allclose(found["curve"], row.curve, atol=1 / 32767)
            seen.add((entries.protocol.name, measure))
    assert seen == {(name, measure) for name in ("rise-fast", "grid14") for measure in ("deletion", "insertion")}


def torch_of(values):
    import torch

    return torch.from_numpy(values)


def end(run, model, picture, kind):
    """(H,W,3) one end of a curve."""
    if kind is None:
        return picture
    drawn = baseline_images(to_tensor(picture)[None], kind, run.manifest["models"][model]["mean"])[0]
    return (drawn.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def test_maps_have_the_colors_of_the_overlays(page, shown):
    for number, run, model, method, image in shown:
        values, size = run.map(model, method, image), run.picture(model, image).shape[:2]
        drawn = np.array(page.evaluate(COLORED, [number, model, method])).reshape(*size, 4)[..., :3]
        error = np.abs(drawn - colorize(values, size).astype(int)).max(axis=2)
        # A map of the image's size is kept in 256 levels of equal size, wide ones where values are rare.
        assert np.mean(error) < (8 if values.shape == size else 0.5), (model, method, image)


def test_heads_are_drawn_as_they_were_kept(page, runs):
    run = Gallery.open(runs[0])
    page.select_option("#image", label="a.png")
    page.select_option("#inside-model", "demo/vit")
    kept = LayerMaps.open(runs[0], run.records.key.unique()).of("demo/vit", "a.png")
    page.click("button.view[data-view=map]")
    page.select_option("#part", "2")
    words = "head 1 of blocks.5.attn in demo/vit on a.png"
    until(page, f"document.querySelector('#inside-view .big canvas')?.ariaLabel === '{words}'")
    drawn = page.eval_on_selector(
        "#inside-view .big canvas", "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    coarse = np.rint(to_unit(kept[5].maps[1]) * 255).astype(np.float32) / 255
    full = np.array(drawn).reshape(64, 64, 4)[..., :3].sum(axis=2)
    centers = full[4::8, 4::8]  # inferno brightens with the value
    assert np.corrcoef(coarse.ravel(), centers.ravel())[0, 1] > 0.97


def test_a_page_that_must_be_small_says_so_and_shows_nearly_the_same(open_page, runs, shown, tmp_path):
    page = open_page(write_report(shutil.copytree(runs[0], tmp_path / "run"), most_inside=1000))
    assert "WebP of quality 70" in page.inner_text(".legend") and "WebP" in page.inner_text("#apart-note")
    for number, run, model, method, image in shown:
        if run.folder == runs[0]:
            values, size = run.map(model, method, image), run.picture(model, image).shape[:2]
            drawn = np.array(page.evaluate(COLORED, [number, model, method])).reshape(*size, 4)[..., :3]
            error = np.abs(drawn - colorize(values, size).astype(int)).max(axis=2).mean()
            assert error < (15 if values.shape == size else 0.5), (model, method, image)


@pytest.mark.slow
def test_images_beside_the_page_are_read_when_they_are_asked_for(open_page, runs, report):
    second = runs[1]
    path = write_report(second, most_inside=1000)
    beside = second / BESIDE
    assert path.stat().st_size < 6_500_000 and len(list(beside.iterdir())) == 3
    page = open_page(path)
    assert [url[-4:] for url in page.requested if BESIDE in url][:1] == ["0.js"]
    until(page, "known.size === 3")  # its neighbors follow
    assert len([url for url in page.requested if BESIDE in url]) == 3
    page.select_option("#image", label="b.png")
    until(page, "document.querySelector('#view .stack img')?.alt.includes('b.png')")
    until(page, "document.querySelector('#view canvas.map').width === 64")
    (beside / "1.js").rename(beside / "away.js")
    page = open_page(path)
    page.select_option("#image", label="a.png")
    until(page, "document.querySelector('#view [role=alert]')")
    assert page.inner_text("#view [role=alert]") == "report_images/1.js is missing beside this page"
    until(
        page,
        "['apart-view', 'inside-view'].every(id => pick(id).textContent.endsWith('1.js is missing beside this page'))",
    )
    (beside / "away.js").rename(beside / "1.js")
    page.click("#after")
    page.click("#before")
    until(page, "document.querySelector('#view .stack img')?.alt.includes('a.png')")  # it is there again
    page.problems.clear()  # the browser says so too
    one = write_report(second, most_inside=None)
    assert one.stat().st_size > path.stat().st_size - 1 and list((second / BESIDE).iterdir()) == []
    assert open_page(one).locator("#view button.tile").count() == 3
