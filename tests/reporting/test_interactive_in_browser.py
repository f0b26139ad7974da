"""The plotly figures in a real Chromium: every slider and button is used, and its effect looked for in the pixels."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import attncompare as ac
from attncompare.benchmark.layer_maps import record_layers

pytestmark = pytest.mark.browser
SIDE = 64
RAMP = torch.linspace(0, 1, SIDE)
PHOTO = torch.stack([RAMP.expand(SIDE, SIDE), RAMP[:, None].expand(SIDE, SIDE), torch.full((SIDE, SIDE), 0.3)])[None]


@pytest.fixture(scope="module")
def model():
    return ac.load_model("demo/vit")


@pytest.fixture
def show(browser, tmp_path):
    """Opens a figure from disk; no script may fail and nothing may be asked of the network."""
    page = browser.new_page(viewport={"width": 1000, "height": 820})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda sent: None if sent.url.startswith(("file:", "data:", "blob:")) else wrong.append(sent.url)
    )

    def opened(figure):
        figure.write_html(tmp_path / "figure.html", include_plotlyjs=True)
        page.goto((tmp_path / "figure.html").as_uri())
        page.wait_for_selector(".main-svg .slider-group")
        settle(page)
        return page

    yield opened
    page.close()
    assert wrong == []


def settle(page):
    """Waits until plotly, which answers in the next frame, has drawn."""
    page.evaluate(
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 250))))"
    )


def press(page, button):
    page.locator(".updatemenu-button", has_text=button).click()
    settle(page)


def picture(page):
    """(H,W,3) of the plot, without sliders, color bar and the half-covered pixels of its edge."""
    box = page.locator(".nsewdrag").first.bounding_box()
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB"), dtype=float)[2:-2, 2:-2]


def traces(page):
    """What is drawn: the opacity of every visible trace."""
    script = "document.querySelector('.js-plotly-plot')._fullData.filter(t => t.visible).map(t => [t.name, t.opacity])"
    return dict(page.evaluate(script))


def slide(page, slider, step):
    """Presses on a slider's tick as a hand does."""
    group = page.locator(".slider-group").nth(slider)
    group.scroll_into_view_if_needed()
    box = group.locator(".slider-tick-rect").nth(step).bounding_box()
    rail = group.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, rail["y"] + rail["height"] / 2)
    settle(page)


def value(page, slider):
    return page.locator(".slider-group").nth(slider).locator(".slider-label").first.text_content()


def expected_photo(seen):
    """The photo in the size in which it is seen."""
    shape = seen.shape[1], seen.shape[0]
    small = Image.fromarray((PHOTO[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    return np.asarray(small.resize(shape, Image.Resampling.NEAREST), dtype=float)


def test_buttons_and_slider_of_one_map(model, show):
    page = show(ac.figures.interactive(ac.make_explainer(model, "saliency").explain(PHOTO), PHOTO))
    both = picture(page)
    press(page, "image")
    photo = picture(page)
    assert list(traces(page)) == ["image"]
    assert np.median(abs(photo - expected_photo(photo))) < 3
    press(page, "map")
    alone = picture(page)
    assert traces(page) == {"saliency": 1} and value(page, 0) == "opacity 1"
    np.testing.assert_allclose(both, 0.4 * photo + 0.6 * alone, atol=4)
    press(page, "overlay")
    assert traces(page) == {"image": 1, "saliency": 0.6} and value(page, 0) == "opacity 0.6"
    np.testing.assert_array_equal(picture(page), both)
    slide(page, 0, 2)
    assert traces(page) == {"image": 1, "saliency": 0.2} and value(page, 0) == "opacity 0.2"
    np.testing.assert_allclose(picture(page), 0.8 * photo + 0.2 * alone, atol=4)


def test_sliders_of_layers_and_heads(model, show):
    layers = record_layers(model, PHOTO)[0]
    page = show(ac.figures.interactive_attention(layers, PHOTO, opacity=1))
    seen = [picture(page)]
    slide(page, 0, 3)
    assert list(traces(page)) == ["image", layers[3].layer]
    assert value(page, 0) == f"layer {layers[3].layer}"
    seen.append(picture(page))
    slide(page, 1, 2)
    assert value(page, 1) == "head 2" and value(page, 0) == f"layer {layers[3].layer}"
    seen.append(picture(page))
    brightest = divmod(int(layers[3].maps[2].argmax()), layers[3].maps.shape[2])
    assert brightest_cell(seen[-1], layers[3].maps.shape[1:]) == brightest
    assert all(abs(one - other).max() > 50 for one, other in pairwise(seen))
    slide(page, 2, 0)
    assert traces(page) == {"image": 1, layers[3].layer: 0}
    photo = picture(page)
    assert np.median(abs(photo - expected_photo(photo))) < 3


def brightest_cell(seen, shape):
    rows, columns = (
        np.linspace(0, length, count + 1).astype(int) for length, count in zip(seen.shape, shape, strict=False)
    )
    cells = [
        [seen[top + 2 : bottom - 2, left + 2 : right - 2].mean() for left, right in pairwise(columns)]
        for top, bottom in pairwise(rows)
    ]
    return divmod(int(np.argmax(cells)), shape[1])


def test_no_words_lie_over_others(model, show):
    page = show(ac.figures.interactive_attention(record_layers(model, PHOTO)[0], PHOTO))
    boxes = [one.bounding_box() for one in page.locator(".slider-group text").all() if one.is_visible()]
    assert len(boxes) > 20
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
            down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
            assert across <= 1 or down <= 1, (one, other)
