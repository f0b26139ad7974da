"""How large the report is and how fast it answers: `python benchmarks/page_speed.py`.

32 photos x 3 models x 12 methods at 224 pixels, opened from disk in headless Chromium at 1280 x 900. First paint is the
browser's own `first-contentful-paint`. An interaction is timed inside the page, from the event to the second animation
frame after it (33 ms at 60 frames a second), when what it changed in the window has been painted; what lies outside the
window may follow. The page rests for 0.4 s before each, as a reader does, except "without a rest", where the next press
comes as soon as the image before has been painted. "By key" is a key that the browser itself receives, timed from its own
time stamp of the press. Writes
benchmarks/results/page_speed.csv: median, minimum, maximum and n in milliseconds, the size of the page, and the load of the
machine. The run under runs/ resumes; it takes some minutes.
"""

import argparse
import os
import shutil
import statistics
from pathlib import Path

import pandas as pd
from playwright.sync_api import Browser, Page, sync_playwright
from results_table import write_table

from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.reporting.html import BESIDE

MODELS = ("offline/efficientnet_lite0", "torchvision/resnet18@random", "timm/vit_tiny_patch16_224@random")
METHODS = (
    "activation", "eigen_cam", "grad_cam", "grad_cam_pp", "xgrad_cam", "layer_cam", "hires_cam", "saliency",
    "input_x_gradient", "random_map", "center_map", "edge_map",
)  # fmt: skip
COARSE = 'steps = 4\ndeletion = "mean"\ninsertion = "blur"\n'
"""A protocol of few steps: what is timed here is the page, not the scoring."""
PREPARE = """() => {
    window.settled = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    for (const name of ["draw", "drawLayers"]) {
        const plain = window[name];
        window[name] = (...given) => window.shown = plain(...given);
    }
    const slide = (id, value) => {
        const at = document.getElementById(id);
        at.value = value;
        at.dispatchEvent(new Event("input"));
    };
    const value = id => Number(document.getElementById(id).value);
    window.ACTIONS = {
        "next image": () => document.getElementById("after").click(),
        "next image without a rest": () => document.getElementById("after").click(),
        "next image, taken apart": () => document.getElementById("after").click(),
        "next image, inside a model": () => document.getElementById("after").click(),
        "a method off and on": () => document.querySelector("#methods input").click(),
        "opacity": () => slide("opacity", value("opacity") % 80 + 10),
        "step of a curve": () => slide("step", value("step") % 4 + 1),
        "block or stage": () => slide("layer", (value("layer") + 1) % 4),
    };
    window.WHERE = {
        "next image, taken apart": "apart", "next image, inside a model": "inside",
        "step of a curve": "apart-view", "block or stage": "inside-view",
    };
}"""
TIMED = """async act => {
    document.getElementById(WHERE[act] || "view").scrollIntoView();
    // What is drawn when there is time.
    if (!act.endsWith("without a rest")) await new Promise(done => setTimeout(done, 400));
    await settled();
    window.shown = null;
    const start = performance.now();
    ACTIONS[act]();
    await window.shown;
    await settled();
    return performance.now() - start;
}"""
KEYS = {"next image by key": "view", "opacity by key": "opacity"}
"""What has the focus, or is in the window, when the right arrow is pressed."""
AWAIT_KEY = """id => {
    const at = document.getElementById(id);
    at.scrollIntoView();
    at.tagName === "INPUT" ? at.focus() : document.activeElement.blur();
    window.shown = null;
    window.answered = new Promise(done => addEventListener("keydown", async event => {
        await window.shown;
        await settled();
        done(performance.now() - event.timeStamp);
    }, {once: true}));
}"""
FIRST_PAINT = """() => new Promise(done => new PerformanceObserver(seen => {
    const [first] = seen.getEntriesByName("first-contentful-paint");
    if (first) done(first.startTime);
}).observe({type: "paint", buffered: true}))"""


def run_folder() -> Path:
    """A real run to show."""
    protocol = Path("runs") / "page_speed" / "coarse.toml"
    protocol.parent.mkdir(parents=True, exist_ok=True)
    protocol.write_text(COARSE)
    spec = BenchmarkSpec(
        models=MODELS, methods=METHODS, metrics=("deletion", "insertion"), protocol=str(protocol), data="photos", limit=32,
        save_maps=True, timing=False,
    )  # fmt: skip
    return Path(str(run_benchmark(spec, protocol.parent / "run").report()))


def measure(browser: Browser, report: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to the first paint of a new page, and of each interaction; the first of each warms up."""
    found: dict[str, list[float]] = {"first paint": []}
    for _ in range(5):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(report.absolute().as_uri())
        found["first paint"].append(page.evaluate(FIRST_PAINT))
        page.close()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(report.absolute().as_uri())
    page.wait_for_timeout(3000)
    page.evaluate(PREPARE)
    for act in page.evaluate("() => Object.keys(ACTIONS)"):
        found[act] = [page.evaluate(TIMED, act) for _ in range(rounds + 1)][1:]
    for act, focused in KEYS.items():
        found[act] = [press(page, focused) for _ in range(rounds + 1)][1:]
    return found


def press(page: Page, focused: str) -> float:
    """Milliseconds from a real press of the right arrow to the picture it asks for."""
    page.evaluate(AWAIT_KEY, focused)
    page.wait_for_timeout(400)
    page.keyboard.press("ArrowRight")
    return float(page.evaluate("() => window.answered"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    report = run_folder()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        found = measure(browser, report, arguments.rounds)
        browser.close()
    beside = sum(file.stat().st_size for file in (report.parent / BESIDE).glob("*"))
    sizes = {"page": [report.stat().st_size / 1e6], "files beside it": [beside / 1e6]}
    rows = [
        {"what": what, "unit": unit, "median": statistics.median(values), "min": min(values), "max": max(values)}
        | {"n": len(values)}
        for unit, several in (("ms", found), ("MB", sizes))
        for what, values in several.items()
    ]
    table = pd.DataFrame(rows).round(1).assign(load=round(os.getloadavg()[0], 1))
    write_table(table, "page_speed", decimals=1)


if __name__ == "__main__":
    main()
