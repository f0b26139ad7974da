"""Which methods reveal a spurious cue: `python benchmarks/cheating.py`, `--table` for the page from the stored figures only.

Runs the study on 64 images, of both demo models or of those named, and writes benchmarks/results/cheating.csv (energies) and
cheating_accuracy.csv, docs/studies/cheating.png and the tables of docs/studies/cheating.md. A second call trains nothing.
"""

import sys
from pathlib import Path

import pandas as pd
from method_table import put
from PIL import Image
from results_table import RESULTS, write_table

from attncompare.reporting.figures import save_figure
from attncompare.reporting.studies.cheating import cheating_figure, cheating_maps_figure
from attncompare.studies import cheating
from attncompare.studies.cued_pictures import CUE_AREA

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "studies" / "cheating.md"
MODELS = ("demo/cnn", "demo/vit")
SURE = 0.05


def accuracy_table(accuracy: pd.DataFrame) -> str:
    """How often each model is right under a right, a random and a wrong cue, and how often it says what the cue says."""
    lines = [
        "| model | trained on | cue right | cue random | cue wrong | wrong cue: says what the cue says |",
        "|---|---|---|---|---|---|",
    ]
    for (model, role), rows in accuracy.groupby(["model", "role"], sort=False):
        by_cue = rows.set_index("cue")
        cells = [f"{by_cue.accuracy[c]:.3f} [{by_cue.low[c]:.3f}, {by_cue.high[c]:.3f}]" for c in by_cue.index]
        cue = "a cue that is right" if role == "cheating" else "a cue drawn at random"
        lines.append(f"| {model}, {role} | {cue} | {' | '.join(cells)} | {by_cue.says_cue['wrong']:.3f} |")
    return "\n".join(lines)


def method_table(table: pd.DataFrame) -> str:
    """Energy on the cue of every method on both models, in percent; in bold the methods that reveal the cheater."""
    lines = [
        "| model | method | n | cheating, % | clean, % | difference, % | p (Holm) | AUROC |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table.itertuples():
        name = f"*`{row.method}`*" if row.control else f"**`{row.method}`**" if reveals(row) else f"`{row.method}`"
        means = [
            f"{100 * getattr(row, c):.1f} [{100 * getattr(row, c + '_low'):.1f}, {100 * getattr(row, c + '_high'):.1f}]"
            for c in ("cheating", "clean", "difference")
        ]
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        lines.append(f"| {row.model} | {name} | {row.n} | {' | '.join(means)} | {p} | {row.auroc:.2f} |")
    return "\n".join(lines)


def reveals(row: object) -> bool:
    """More energy on the cue than on the clean model, and more than a map that knows nothing has there."""
    surplus = row.p_holm < SURE and row.difference_low > 0  # type: ignore[attr-defined]
    return bool(surplus and row.cheating_low > CUE_AREA)  # type: ignore[attr-defined]


def main() -> None:
    if "--table" not in sys.argv:
        found = cheating(ROOT / "runs" / "cheating", models=sys.argv[1:] or MODELS, images=64)
        write_table(found.methods, "cheating", 4)
        write_table(found.accuracy, "cheating_accuracy", 4)
        drawn = save_figure(cheating_figure(found), PAGE.with_suffix(".png"))
        Image.open(drawn).convert("RGB").quantize(32).save(drawn, optimize=True)  # a page loads faster
        save_figure(cheating_maps_figure(found), ROOT / "runs" / "cheating" / "maps.png")
    text = PAGE.read_text(encoding="utf-8")
    for mark, table in (
        ("accuracy", accuracy_table(pd.read_csv(RESULTS / "cheating_accuracy.csv"))),
        ("energy", method_table(pd.read_csv(RESULTS / "cheating.csv"))),
    ):
        text = put(text, mark, table)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
