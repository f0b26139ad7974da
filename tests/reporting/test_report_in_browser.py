"""The report in a real Chromium: every control is used and its effect is looked for in the page."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from reading import FAILED, HOSTILE, REASON, until

pytestmark = pytest.mark.browser


def state_of(page):
    """The link's state, when it has been written."""
    until(page, "location.hash.slice(1) === String(link)")
    return page.url[page.url.index("#") :]


def opacity(page):
    return float(page.eval_on_selector("#view canvas.map", "one => getComputedStyle(one).opacity"))


def slide(page, selector, value):
    page.eval_on_selector(selector, "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", value)


def pixels(page, selector):
    """RGBA of a canvas, as the page holds it."""
    return page.eval_on_selector(selector, "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")


def tiles(page):
    return page.locator("#view button.tile b").all_inner_texts()


def choose(page, picker, names):
    page.locator(f"details:has(#{picker}) summary").click()
    page.locator(f"#{picker} button", has_text="none").click()
    for name in names:
        page.locator(f"#{picker} input[value='{name}']").check()
    page.locator(f"details:has(#{picker}) summary").click()


def test_slider_and_buttons_change_what_is_drawn(page):
    assert opacity(page) == 0.55
    overlay = page.locator("#view .gallery").first.screenshot()
    slide(page, "#opacity", 20)
    assert opacity(page) == 0.2
    page.click("button.view[data-view=map]")
    assert opacity(page) == 1
    as_map = page.locator("#view .gallery").first.screenshot()
    page.click("button.view[data-view=image]")
    assert opacity(page) == 0
    as_image = page.locator("#view .gallery").first.screenshot()
    assert len({overlay, as_map, as_image}) == 3
    assert page.get_attribute("button.view[data-view=image]", "aria-pressed") == "true"
    assert page.get_attribute("button.view[data-view=map]", "aria-pressed") == "false"


def test_pickers_choose_models_methods_and_images(page):
    assert page.locator("#view h3").count() == 2
    choose(page, "models", ["demo/vit"])
    assert page.locator("#view h3").all_inner_texts()[0].startswith("demo/vit explains “")
    assert page.locator("#view h3").count() == 1
    choose(page, "methods", ["gradient_rollout", "center_map"])
    assert tiles(page) == ["gradient_rollout", "center_map"]
    until(page, "document.querySelector('#view canvas.map').width === 64")
    before = pixels(page, "#view canvas.map")
    page.select_option("#image", label="b.png")
    until(page, "document.querySelector('#view .stack img').alt.includes('b.png')")
    until(page, "document.querySelector('#view canvas.map').width === 64")
    assert pixels(page, "#view canvas.map") != before
    assert "model=demo%2Fvit" in state_of(page) and "method=gradient_rollout&method=center_map" in state_of(page)
    page.locator("details:has(#methods) summary").click()
    page.locator("#methods button", has_text="all").click()
    assert len(tiles(page)) == 5 and "method=" not in state_of(page)


def test_the_target_picker_shows_another_run_of_the_same_image(page):
    assert page.locator("#target option").all_inner_texts() == ["the model's own first choice", "class 1"]
    assert set(tiles(page)) == {"cam", "grad_cam", "gradient_rollout", "saliency", "center_map", "random_map"}
    page.select_option("#target", "1")
    until(page, "document.querySelectorAll('#view button.tile').length === 3")
    assert tiles(page) == ["cam", "saliency", "saliency"]
    assert "target=1" in state_of(page)


def test_keyboard_and_buttons_move_through_the_images(page):
    page.locator("h1").click()
    for key, image in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowRight", "0"), ("ArrowLeft", "2")):
        page.keyboard.press(key)
        assert page.input_value("#image") == image
    page.click("#before")
    assert page.input_value("#image") == "1"
    page.click("#after")
    assert page.input_value("#image") == "2"


def test_a_link_keeps_its_state(page, open_page, report):
    page.select_option("#image", index=1)
    choose(page, "models", ["demo/vit"])
    page.click("button.view[data-view=map]")
    page.select_option("#apart-method", "gradient_rollout")
    slide(page, "#step", 5)
    slide(page, "#layer", 2)
    page.select_option("#part", "3")
    page.click("#theme")
    for head in ("deletion", "forward passes"):  # many of which tie
        page.locator("table.sortable").nth(1).locator("th button", has_text=head).click()
    page.locator(".group", has_text="Quality against cost").first.locator("select.variants").nth(1).select_option("2")
    page.locator(".group", has_text="deletion curves").first.locator("button.trace", has_text="saliency").click()
    again = open_page(report, state_of(page))
    cost, curves = "Quality against cost", "deletion curves"
    for opened in (page, again):
        selects = opened.locator(".group", has_text=cost).first.locator("select.variants")
        assert [one.input_value() for one in selects.all()] == ["0", "2"]
        off = opened.locator("button.trace[aria-pressed=false]")
        assert off.all_inner_texts() == ["saliency"] and curves in off.locator("xpath=../..").inner_text()
        heads = opened.locator("th[aria-sort]")
        assert [one.inner_text() for one in heads.all()] == ["forward passes ↓"]
    rows = "[...document.querySelectorAll('table.sortable')].map(one => one.tBodies[0].innerText)"
    assert again.evaluate(rows) == page.evaluate(rows)
    drawn = again.locator(".group", has_text=cost).first.locator(".chartbox").nth(1)
    drawn.scroll_into_view_if_needed()
    drawn.locator(".main-svg").first.wait_for()
    label = drawn.locator("option").nth(2).inner_text()
    assert label in drawn.locator("h4").inner_text() and label.split()[0] in drawn.locator(".ytitle").text_content()
    for selector in ("#image", "#apart-method", "#step", "#layer", "#part"):
        assert again.input_value(selector) == page.input_value(selector)
    assert opacity(again) == 1 and again.locator("#view h3").count() == 1
    assert again.evaluate("document.documentElement.dataset.theme") == "light"
    for selector in ("#apart-view canvas", "#inside-view canvas"):
        assert pixels(again, selector) == pixels(page, selector)


@pytest.mark.parametrize("number", ["x", "-3", "1.5"])
def test_a_link_that_someone_mangled_opens_the_page(open_page, report, number):
    numbers = "&".join(f"{name}={number}" for name in ("target", "opacity", "step", "layer", "part"))
    page = open_page(
        report,
        f"#image=nope&{numbers}&of=none&by=none&inside=none&view=none&theme=none"
        f"&sort-0={number}&sort-1=99&chart-0={number}&chart-4=99&hide-0=gone&hide-9=cam",
    )
    assert page.input_value("#image") == "0" and page.locator("#view h3").count() == 2
    assert page.locator("#apart-view canvas").count() == 2 and page.locator("#inside-view .big canvas").count() == 1
    assert opacity(page) == 0.55


@pytest.mark.parametrize("view", ["__proto__", "constructor", "toString"])
def test_a_link_of_another_run_or_with_names_of_the_language_opens_the_page(open_page, report, view):
    names = "&".join(f"{name}={view}" for name in ("image", "of", "by", "inside", "theme"))
    page = open_page(report, f"#view={view}&{names}&model=gone%2Fmodel&method=gone_map")
    assert opacity(page) == 0.55 and page.locator("button.view[aria-pressed=true]").inner_text() == "overlay"
    assert page.locator("#view h3").count() == 2 and page.locator("#apart-view canvas").count() == 2
    nothing = open_page(report, "#model=")
    assert nothing.locator("#view h3").count() == 0  # what a reader chose, kept


def test_a_tile_is_taken_apart_step_by_step(page):
    page.locator("#view button.tile", has_text="saliency").first.click()
    assert page.input_value("#apart-method") == "saliency" and page.input_value("#apart-model") == "demo/cnn"
    until(page, "document.querySelector('#apart-scores').textContent.startsWith('saliency on demo/cnn: deletion ↓')")
    clean, cursor = pixels(page, "#apart-view canvas"), page.get_attribute("#apart-view .cursor", "x1")
    slide(page, "#step", 7)
    assert page.inner_text("#step-words") == "step 7 of 19: 37 % changed"
    changed = pixels(page, "#apart-view canvas")
    moved = sum(changed[i : i + 3] != clean[i : i + 3] for i in range(0, len(clean), 4))
    assert abs(moved - 7 * 64 * 64 / 19) < 20  # some pixels had that color before
    assert page.get_attribute("#apart-view .cursor", "x1") != cursor
    assert page.locator("#apart-view polyline").count() == 2
    page.click("#step-play")
    until(page, "Number(document.querySelector('#step').value) > 8")
    page.click("#step-play")
    assert page.inner_text("#step-play") == "▶ play"


def test_without_models_nothing_plays_and_the_link_keeps_no_step(page):
    page.click("#step-play")
    choose(page, "models", [])
    until(page, "document.querySelector('#apart-view').textContent === 'No model is chosen above.'")
    before = state_of(page)
    page.wait_for_timeout(600)
    assert page.locator("#step-play").is_disabled() and page.inner_text("#step-play") == "▶ play"
    assert page.inner_text("#step-words") == "" and state_of(page) == before
    assert page.inner_text("#inside-view") == "No model is chosen above."


def test_a_heading_that_is_jumped_to_is_not_under_the_bar(page):
    page.evaluate("document.getElementById('apart').scrollIntoView()")
    edges = "id => document.querySelector(id).getBoundingClientRect()"
    assert page.evaluate(f"({edges})('#apart').top >= ({edges})('.controls.sticky').bottom")


def test_blocks_heads_stages_and_channels(page):
    page.select_option("#inside-model", "demo/vit")
    until(page, "document.querySelector('#layer-words').textContent === 'block 6 of 6: blocks.5.attn'")
    assert page.locator("#part option").count() == 5  # the mean and four heads
    mean = pixels(page, "#inside-view .big canvas")
    page.select_option("#part", "2")
    until(page, "document.querySelector('#inside-view .big b').textContent === 'head 1'")
    head = pixels(page, "#inside-view .big canvas")
    slide(page, "#layer", 0)
    until(page, "document.querySelector('#layer-words').textContent.startsWith('block 1 of 6')")
    assert mean != head != pixels(page, "#inside-view .big canvas")
    page.locator("#inside-view button.tile").nth(4).click()
    until(page, "document.querySelector('#inside-view .big b').textContent === 'head 3'")
    page.click("#layer-play")
    until(page, "Number(document.querySelector('#layer').value) >= 2")
    page.click("#layer-play")
    page.select_option("#inside-model", "demo/cnn")
    until(page, "document.querySelector('#layer-words').textContent.startsWith('stage 4 of 4')")
    assert page.locator("#part option").count() == 8
    assert all(name.startswith("channel ") for name in page.locator("#part option").all_inner_texts())


def test_refused_and_failed_pairs_are_shown_with_their_reasons(page):
    page.select_option("#image", label="a.png")
    until(page, "document.querySelector('#view').textContent.includes('1 failed')")
    refused = page.locator("#view details", has_text="1 refused, with reasons")
    refused.first.locator("summary").click()
    assert "gradient_rollout (unsupported)" in refused.first.inner_text()
    assert "no softmax attention between image positions" in refused.first.inner_text()
    failed = page.locator("#view details", has_text="1 refused, 1 failed")
    assert failed.count() == 1 and REASON in failed.inner_text()
    page.select_option("#image", label="b.png")
    until(page, "!document.querySelector('#view').textContent.includes('1 failed')")
    assert FAILED[1] in tiles(page)


def test_tables_sort_both_ways(page):
    table = page.locator("table.sortable").first
    names = table.locator("tbody tr td:first-child")
    table.locator("th button", has_text="method").click()
    assert names.all_inner_texts() == sorted(names.all_inner_texts())
    for head, column, reverse in (("deletion", 2, False), ("insertion", 3, True)):
        table.locator("th button", has_text=head).click()
        cells = table.locator(f"tbody tr td:nth-child({column})")
        values = cells.evaluate_all("cells => cells.map(cell => parseFloat(cell.dataset.value))")
        assert values == sorted(values, reverse=reverse)
        assert table.locator("th", has_text=head).get_attribute("aria-sort") == (
            "descending" if reverse else "ascending"
        )


def test_every_chart_is_drawn_and_the_legend_hides_methods(page):
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
        assert len(chart.get_attribute("aria-label")) > 15
    group = page.locator(".group", has_text="deletion curves").first
    lines = group.locator(".chart").first.locator(".scatterlayer .trace:visible")
    shown = lines.count()
    group.locator("button.trace", has_text="saliency").click()
    traces = "document.querySelector('.group .chart').querySelectorAll('.scatterlayer .trace').length"
    until(page, f"{traces} === {shown - 2}")
    cost = page.locator(".group", has_text="Quality against cost").first
    before = cost.locator(".ytitle").first.text_content()
    cost.locator("select.variants").first.select_option(label="insertion against passes")
    assert (before, cost.locator(".ytitle").first.text_content()) == ("deletion ↓", "insertion ↑")


def test_light_and_dark(open_page, report):
    background = "getComputedStyle(document.body).backgroundColor"
    page = open_page(report, color_scheme="dark")
    dark = page.evaluate(background)
    page.click("#theme")
    assert page.inner_text("#theme") == "theme: light"
    light = page.evaluate(background)
    page.click("#theme")
    assert light == "rgb(255, 255, 255)" and page.evaluate(background) == dark != light


def test_hostile_names_and_reasons_run_nothing(page):
    page.select_option("#image", label=HOSTILE)
    until(page, "document.querySelector('#view img').alt.includes('onerror')")
    page.locator("summary", has_text="All reasons").first.click()
    assert page.locator("table.words td", has_text="</script><script>").count() > 0
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


@pytest.fixture
def server():
    """A server on this machine, and the paths that were asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()


TRY = """async address => {
    const box = document.body.appendChild(document.createElement("div"));
    box.innerHTML = '<img src="x:" onerror="window.hacked=1"><a id="link" href="javascript:window.hacked=2">x</a>';
    box.insertAdjacentHTML("beforeend", '<button id="inline" onclick="window.hacked=3">x</button>');
    document.body.appendChild(document.createElement("script")).textContent = "window.hacked=4";
    document.body.appendChild(document.createElement("script")).src = address + "/script.js";
    document.getElementById("link").click();
    document.getElementById("inline").click();
    const image = new Image();
    const loads = new Promise(done => { image.onload = () => done(true); image.onerror = () => done(false); });
    image.src = address + "/image.png";
    return [await loads, await fetch(address + "/fetch").then(() => true, () => false), window.hacked ?? null];
}"""


def test_the_policy_stops_scripts_and_requests(browser, report, server):
    address, asked = server
    page = browser.new_page()
    page.goto(report.as_uri())
    assert page.evaluate(TRY, address) == [False, False, None]
    assert asked == []
    page.goto(address + "/free")  # the server does hear what is asked of it
    assert asked[0] == "/free"
    page.close()


@pytest.mark.parametrize(
    "width", [pytest.param(320, marks=pytest.mark.slow), 390, pytest.param(1200, marks=pytest.mark.slow)]
)
def test_no_width_needs_sideways_scrolling(open_page, report, width):
    page = open_page(report, size=(width, 740))
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('.chart')].every(one => one.querySelector('.main-svg'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_that_is_seen_has_words(page):
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("canvas:not([aria-label])").count() == 0
    unnamed = page.locator("select, input, button").evaluate_all(
        "all => all.filter(one => !one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim()).length"
    )
    assert unnamed == 0
