"""What layers see over depth: `python benchmarks/layer_trends.py` writes the numbers and figures of docs/studies/layers.md.

`--table` writes the page's table from the numbers only. The demo models see 200 synthetic shapes, whose objects are known; a
pretrained CNN sees all photos that come with packages, whose objects are not.
"""

import sys
from pathlib import Path

import pandas as pd
from method_table import put

import attncompare as ac
from attncompare.reporting.figures import save_figure
from attncompare.reporting.studies.layer_trends import distance_figure, trends_figure
from attncompare.studies.layer_measures import MEASURES

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "studies" / "layers.md"
STUDIES = {
    "shapes": (("demo/cnn", "demo/se_cnn", "demo/vit"), 200),
    "photos": (("offline/efficientnet_lite0",), None),
}
"""Data -> models and how many images."""


def measured() -> None:
    """Run the studies; one CSV per kind of table, one figure per data set."""
    tables: dict[str, list[pd.DataFrame]] = {"layer_trends": [], "layer_means": [], "attention_distance": []}
    for data, (names, limit) in STUDIES.items():
        found = ac.studies.layer_trends([ac.load_model(name) for name in names], data, limit)
        tables["layer_trends"].append(found.trends())
        tables["layer_means"].append(found.means())
        tables["attention_distance"].append(found.heads)
        save_figure(trends_figure(found), PAGE.parent / f"layer-trends-{data}.png")
        if not found.heads.empty:
            save_figure(distance_figure(found), PAGE.parent / f"attention-distance-{data}.png")
    for name, parts in tables.items():
        whole = pd.concat(parts, ignore_index=True)
        whole.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.4f", lineterminator="\n")


def trend_table(trends: pd.DataFrame) -> str:
    """A row per model, map and grid, a column per measure: mean rank correlation with depth and the verdict."""
    names = ["edges", "object", *(name for name in MEASURES if name not in ("edges", "object"))]
    lines = ["| model | map | grid | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    marks = {"rises": "↑", "falls": "↓", "open": "–"}
    for (model, map_, grid), rows in trends.groupby(["model", "map", "grid"], sort=False):
        by_name = rows.set_index("measure")
        cells = []
        for name in names:
            if name not in by_name.index:
                cells.append("")
                continue
            row = by_name.loc[name]
            cells.append(f"{marks[row.verdict]} {row.rho:+.2f} [{row.rho_low:+.2f}, {row.rho_high:+.2f}]")
        if any(cells):
            lines.append(f"| {model} | {map_.replace('_', ' ')} | {grid} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    if "--table" not in sys.argv:
        measured()
    table = trend_table(pd.read_csv(RESULTS / "layer_trends.csv"))
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), "trends", table), encoding="utf-8")


if __name__ == "__main__":
    main()
