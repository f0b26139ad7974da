"""Images that follow each other quickly, or whose data come late: every picture shown is of the image chosen last."""

import pytest
from reading import until

pytestmark = pytest.mark.browser

HELD = """held => {
    const plain = load, gate = new Promise((done, fail) => Object.assign(window, {release: done, refuse: fail}));
    window.load = number => number === held ? gate.then(() => plain(number)) : plain(number);
}"""
"""The data of one image come when the test lets them."""
SHOWN = """async () => {
    const name = data.images[state.image].image, entry = await load(data.images[state.image].targets[state.target].entry);
    const drawn = document.querySelectorAll("#view canvas, #apart-view canvas, #inside-view canvas");
    const words = [...drawn].map(one => one.ariaLabel);
    const photos = [...document.querySelectorAll("#view img[alt^='the image']")].map(one => one.alt);
    const wrong = [];
    for (const tile of document.querySelectorAll("#view button.tile")) {
        const [model, method] = JSON.parse(tile.dataset.pair), shown = entry.models.find(one => one.model === model);
        const map = shown.maps.find(one => one.method === method), fresh = document.createElement("canvas");
        paint(fresh, await fullMap(map, shown.size), ...shown.size, map.scale, map.signed);
        const bytes = one => one.getContext("2d").getImageData(0, 0, one.width, one.height).data.join();
        if (bytes(fresh) !== bytes(tile.querySelector("canvas"))) wrong.push(tile.dataset.pair);
        if (tile.querySelector("img").src !== entry.pictures[shown.picture]) wrong.push("the photo of " + tile.dataset.pair);
    }
    return {others: [...words, ...photos].filter(one => !one.includes(name)), seen: words.length, wrong};
}"""
QUIET = """async () => {
    const tiles = [...document.querySelectorAll("#view button.tile")];
    await Promise.all(tiles.map(tile => {
        const entry = state.entry, [model, method] = JSON.parse(tile.dataset.pair);
        const shown = entry.models.find(one => one.model === model);
        return paintMap(entry, shown, shown.maps.find(one => one.method === method));
    }));
    const hidden = ["apart-view", "inside-view"].some(id => document.getElementById(id).style.visibility);
    return !hidden && !document.getElementById("view").hasAttribute("aria-busy");
}"""


def all_of_the_chosen(page):
    until(page, f"({QUIET})()")
    found = page.evaluate(SHOWN)
    assert found["wrong"] == [] and found["others"] == []
    assert found["seen"] > 10


def test_keys_pressed_quickly_end_at_the_last_image(page):
    page.locator("h1").click()
    for presses in (1, 4, 7):
        before = int(page.input_value("#image"))
        page.evaluate(
            """times => { for (let i = 0; i < times; i++) {
            document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
        } }""",
            presses,
        )
        assert int(page.input_value("#image")) == (before + presses) % 3
        all_of_the_chosen(page)


def test_data_that_come_late_do_not_replace_what_was_chosen_since(page):
    until(page, "known.size === 3")  # the neighbors are ready
    page.evaluate(HELD, 1)
    page.click("#after")
    assert page.get_attribute("#view", "aria-busy") == "true"
    page.click("#after")
    all_of_the_chosen(page)
    page.evaluate("release()")
    page.wait_for_timeout(100)
    assert page.input_value("#image") == "2"
    all_of_the_chosen(page)


def test_a_late_failure_does_not_replace_what_was_chosen_since(page):
    until(page, "known.size === 3")
    page.evaluate(HELD, 1)
    page.click("#after")
    page.click("#before")
    page.evaluate("refuse(new Error('gone'))")
    page.wait_for_timeout(100)
    all_of_the_chosen(page)
    page.click("#after")
    until(page, "document.querySelector('#view [role=alert]')")
    assert page.inner_text("#view [role=alert]") == "gone"
    for part in ("apart-view", "inside-view"):
        until(page, f"!document.getElementById('{part}').style.visibility")
    assert page.locator("#apart-view canvas, #inside-view canvas").count() == 0  # nothing of another image stays


def test_the_next_image_is_drawn_before_it_is_asked_for_and_old_ones_are_forgotten(page):
    until(page, "known.size === 3")
    ready = """async () => {
        const entry = await load(data.images[1].targets[0].entry);
        return entry.models.every(model => model.maps.every(map => painted.has(map)));
    }"""
    until(page, f"({ready})()")
    page.evaluate("async () => { for (let i = 0; i < 6; i++) window.last = await load(i); }")
    assert page.evaluate("[...known.keys()]") == [1, 2, 3, 4, 5]
    assert page.evaluate("async () => await load(5) === last && (await load(0)).image === data.images[0].image")


def test_the_window_changes_in_one_step(page):
    """No card of the next image is shown before its map is drawn."""
    until(page, f"({QUIET})()")
    page.evaluate("known.clear()")  # nothing is ready
    empty = """async () => {
        let empty = 0;
        new MutationObserver(() => document.querySelectorAll("#view button.tile").forEach(one => {
            const canvas = one.querySelector("canvas"), at = canvas.getContext("2d").getImageData(5, 5, 1, 1).data;
            if (inWindow(one) && !at[3]) empty++;
        })).observe(document.getElementById("view"), {childList: true});
        document.getElementById("after").click();
        await new Promise(done => setTimeout(done, 500));
        return empty;
    }"""
    assert page.evaluate(empty) == 0


def test_charts_wait_until_the_images_have_their_place(page):
    until(page, f"({QUIET})()")
    assert page.evaluate("window.Plotly === undefined && !document.querySelector('.chart.drawn')")
    page.locator(".chart").first.scroll_into_view_if_needed()
    page.locator(".chart .main-svg").first.wait_for()
