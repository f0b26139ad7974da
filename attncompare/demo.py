"""The demo: two benchmarks, a report, a figure and tables, on models and photos that need no download."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attncompare.benchmark.run import Run
from attncompare.benchmark.spec import BenchmarkSpec, make_spec
from attncompare.errors import SpecError
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.reporting.figures import draw, save_figure
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.html import write_report
from attncompare.reporting.overlay import overlay
from attncompare.reporting.tables import table
from attncompare.storage.names import folder_of, slug
from attncompare.storage.spec import read_toml

RunSpec = Callable[[BenchmarkSpec, Path], Run]


def demo_specs(full: bool) -> tuple[BenchmarkSpec, BenchmarkSpec]:
    """The two parts of the demo as benchmarks/demo.toml states them; `full` adds the costly methods and metrics."""
    here = Path(__file__).parent
    found = next((p for p in (here / "demo.toml", here.parent / "benchmarks" / "demo.toml") if p.exists()), None)
    if found is None:
        raise SpecError("demo.toml is missing from this installation; reinstall attncompare")
    parts: dict[str, dict[str, Any]] = read_toml(found)
    if full:
        for name in ("shapes", "photos"):
            parts[name]["methods"] += parts["full"]["methods"]
        parts["shapes"]["metrics"] += parts["full"]["metrics"]
    return make_spec(parts["shapes"]), make_spec(parts["photos"])


def save_overlays(folder: Path) -> list[Path]:
    """Write every saved map over its image: overlays/IMAGE/MODEL-METHOD.png."""
    run = Gallery.open(folder)
    shutil.rmtree(folder / "overlays", ignore_errors=True)  # of an earlier run, perhaps of other images
    written = []
    for model in run.models:
        for method in run.methods_of(model):
            for image in run.images:
                values = run.map(model, method, image)
                if values is None:
                    continue
                path = folder / "overlays" / folder_of(image) / f"{slug(model)}-{method}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(overlay(run.picture(model, image), values))).save(path)
                written.append(path)
    return written


def ranking(run: Run) -> list[str]:
    """Lines for the terminal: the methods of each model from best to worst insertion, with intervals."""
    summary = Gallery.open(run.folder).summary
    lines = []
    for model in summary.model.unique():
        rows = summary[(summary.model == model) & (summary.n > 0)].pivot_table(
            index="method", columns="measure", values="mean"
        )
        names = [name for name in ("insertion", "deletion", "pointing_game", "energy_inside") if name in rows]
        rows = rows.dropna(subset=names[:1]).sort_values(names[0], ascending=False)
        lines += [
            "",
            f"{model:<24}"
            + "".join(f"{n + ('↓' if metrics.get(n).better == 'lower' else '↑'):>16}" for n in names)
            + f"{'ms':>9}{'forward':>9}{'backward':>9}",
        ]
        for method, row in rows.iterrows():
            mark = " (control)" if methods.get(str(method)).control else ""
            numbers = "".join(f"{row[name]:>16.3f}" for name in names)
            lines.append(
                f"  {method}{mark}".ljust(24)
                + numbers
                + f"{row['latency_median'] * 1e3:>9.1f}{row['passes_forward']:>9.0f}{row['passes_backward']:>9.0f}"
            )
    return lines


def run_demo(out: Path, full: bool, run_spec: RunSpec, say: Callable[[object], object]) -> None:
    """Run both parts, write the report, the comparison figure and the tables, print the ranking and the paths."""
    shapes, photos = demo_specs(full)
    say("Part 1 of 2: three demo models on synthetic images whose evidence is known")
    first = run_spec(shapes, out)
    say("Part 2 of 2: a pretrained CNN and a pretrained ViT on real photos")
    second = run_spec(photos, out / "photos")
    for line in ranking(first):
        say(line)
    say("")
    for ending in ("tex", "csv", "md"):
        path = out / f"table.{ending}"
        path.write_text(table(out, ending), encoding="utf-8")
        say(path)
    say(save_figure(draw(second.folder, "grid"), out / "comparison.pdf"))
    for kind in ("grid", "curves"):
        say(save_figure(draw(out, kind), out / "figures" / f"{kind}.pdf"))
    say(write_report(out, also=(second.folder,)))
    say(
        f"{first.computed + second.computed} cells computed, {first.reused + second.reused} reused; run: {out / 'run.json'}"
    )
