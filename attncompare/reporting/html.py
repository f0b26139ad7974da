"""report.html: one self-contained file that opens from disk and asks the network for nothing."""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps
from plotly.offline import get_plotlyjs

from attncompare.reporting.charts import arrow
from attncompare.reporting.entries import Entries, entries_of
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.levels import as_text
from attncompare.reporting.overlay import DIVERGING, SEQUENTIAL
from attncompare.reporting.pictures import WEBP
from attncompare.reporting.sections import section
from attncompare.storage.folder import Location, RunFolder

MOST_INSIDE = 9_500_000
"""Characters of images that the file holds, which with plotly's 4.8 MB and the charts stays below 15 MB."""
BESIDE = "report_images"
SCRIPTS = ("maps.js", "page.js", "browser.js", "ahead.js", "apart.js", "layers.js")


def write_report(
    folder: Location, *, also: Sequence[Location] = (), most_inside: int | None = MOST_INSIDE, exact: bool = False
) -> Location:
    """Write report.html into a run (with further runs, such as the demo's photos) and return its path or URL.

    most_inside: how many characters of images the file may hold. When they are more, photos and large maps are kept with
    some loss, which the page says; when they still are, they go to the folder report_images beside it and are read as
    they are asked for. None puts everything into the one file. exact: whether they never lose anything.
    """
    shown = [Entries.of(Gallery.open(path)) for path in (folder, *also)]
    entries = _entries(shown, None if exact else most_inside)
    if entries is None:
        shown = [replace(one, exact=False) for one in shown]
        entries = _entries(shown, None) or []
    outside = most_inside is not None and sum(map(len, entries)) > most_inside
    sections = [section(one, number) for number, one in enumerate(shown)]
    charts = [chart.variants for one in sections for group in one["groups"] for chart in group["charts"]]
    scripts = [get_plotlyjs(), "\n".join(_template(name) for name in SCRIPTS)]
    environment = Environment(
        loader=PackageLoader("attncompare.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    page = environment.get_template("report.html.j2").render(
        policy=policy(scripts, beside=outside),
        style=_template("report.css"),
        plotly=scripts[0],
        script=scripts[1],
        sections=sections,
        labels=[[chart["label"] for chart in group] for group in charts],
        entries=[] if outside else [json.loads(entry) for entry in entries],
        images=len(entries),
        webp=None if all(one.exact for one in shown) else WEBP,
        data=_data(shown, charts),
    )
    out = RunFolder(folder)
    _write_beside(out, entries if outside else [])
    out.write("report.html", page.encode())
    return out.full("report.html")


def _entries(shown: list[Entries], most: int | None) -> list[str] | None:
    """Every image as JSON; None as soon as they are more than so many characters."""
    found, size = [], 0
    for number, image in entries_of(shown):
        found.append(json.dumps(shown[number].entry(image), separators=(",", ":")))
        size += len(found[-1])
        if most is not None and size > most:
            return None
    return found


def _template(name: str) -> str:
    return files("attncompare.reporting").joinpath("templates", name).read_text(encoding="utf-8")


def breakable(name: str) -> Markup:
    """A name that breaks behind its underscores, escaped.

    >>> breakable("<i>_map")
    Markup('&lt;i&gt;_<wbr>map')
    """
    return Markup("_<wbr>").join(name.split("_"))


def policy(scripts: Sequence[str], beside: bool) -> str:
    """The content security policy: these scripts, styles and data: pictures; nothing else, and nothing of the network.

    beside: whether these scripts may add others, as those of the images beside the page.

    >>> policy(["1"], beside=False)[:80]
    "default-src 'none'; base-uri 'none'; form-action 'none'; script-src 'sha256-a4ay"
    """
    hashes = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes) + (" 'strict-dynamic'" if beside else "")
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; script-src {allowed}; "
        "style-src 'unsafe-inline'; img-src data:"
    )


def _data(shown: list[Entries], charts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What the scripts know of all images at once."""
    names = dict.fromkeys(name for one in shown for name in one.run.metric_names())
    return {
        "charts": charts,
        "images": _images(shown),
        "models": list(dict.fromkeys(model for one in shown for model in one.run.models)),
        "methods": list(dict.fromkeys(name for one in shown for name in one.methods)),
        "runs": [
            {"curves": one.perturbations(), "cells": one.protocol.cells, "ties": one.ties(), "note": one.note}
            for one in shown
        ],
        "arrows": {name: arrow(name) for name in names},
        "colors": {"sequential": _colors(SEQUENTIAL), "diverging": _colors(DIVERGING)},
        "beside": BESIDE,
    }


def _images(shown: list[Entries]) -> list[dict[str, Any]]:
    """Every image once, with the targets that were explained of it; name: what picker and link call it."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry, (number, image) in enumerate(entries_of(shown)):
        one = shown[number]
        found.setdefault((one.data, image), []).append({"label": one.target, "entry": entry, "run": number})
    images, places = [image for _, image in found], _places(shown)
    return [
        {"image": image, "name": image if images.count(image) == 1 else f"{image} ({places[data]})", "targets": targets}
        for (data, image), targets in found.items()
    ]


def _places(shown: list[Entries]) -> dict[str, str]:
    """Where images come from -> a short name of it, no two alike: a folder's last name, with a run's number if need be."""
    first = {one.data: number for number, one in reversed([*enumerate(shown)])}
    short = {data: shown[number].place for data, number in first.items()}
    same = Counter(short.values())
    return {data: name if same[name] == 1 else f"{name}, run {first[data] + 1}" for data, name in short.items()}


def _colors(name: str) -> str:
    """256 colors of a color map as base64 of RGB bytes."""
    return as_text(np.asarray(colormaps[name](np.arange(256))[:, :3] * 255, dtype=np.uint8).tobytes())


def _write_beside(out: RunFolder, entries: Sequence[str]) -> None:
    """One script per image that hands its data to the page; what an earlier report left there goes."""
    for name in out.names(BESIDE):
        out.remove(f"{BESIDE}/{name}")
    for number, entry in enumerate(entries):
        out.write(f"{BESIDE}/{number}.js", f"receive({number},{entry})\n".encode())
