"""Which method for which question, by the demo's scores, for README.md: `python benchmarks/demo_scores.py`.

Part 1 of the demo without its timing: benchmarks/results/demo_scores.csv has the mean of each method, model and measure with
its 95 % interval. `--table` writes the table from that file only.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from method_table import put

from attncompare.benchmark.run import run_benchmark
from attncompare.demo import demo_specs
from attncompare.methods._base import methods
from attncompare.metrics._base import metrics

ROOT = Path(__file__).parents[1]
SCORES = ROOT / "benchmarks" / "results" / "demo_scores.csv"
CHEATING, ACCURACY = (ROOT / "benchmarks" / "results" / name for name in ("cheating.csv", "cheating_accuracy.csv"))
KEPT = ["model", "method", "measure", "n", "mean", "low", "high"]
QUESTIONS = (
    ("Which region decides, on a CNN?", "demo/cnn", "grad_cam", "deletion"),
    ("The same, without a backward pass?", "demo/se_cnn", "cam", "deletion"),
    ("Which patches decide, on a ViT?", "demo/vit", "gradient_rollout", "insertion"),
    ("Which pixels matter most, on a CNN?", "demo/cnn", "saliency", "insertion"),
    ("Which pixels matter most, on a ViT?", "demo/vit", "integrated_gradients", "deletion"),
    ("Where does a layer respond, whatever the class?", "demo/cnn", "activation", "pointing_game"),
    ("What does a ViT attend to, whatever the class?", "demo/vit", "class_attention", "energy_inside"),
)
"""Question, model, method, and the measure that answers it."""


def scored() -> pd.DataFrame:
    """The means of the demo's first part."""
    spec = demo_specs(full=False)[0].model_copy(update={"timing": False, "save_maps": False})
    summary = run_benchmark(spec, ROOT / "runs" / "demo_scores").summary()
    kept = summary[summary.measure.isin(spec.metrics) & (summary.n > 0)]
    return kept[KEPT].sort_values(KEPT[:3])


def evidence(scores: pd.DataFrame, model: str, method: str, measure: str) -> str:
    """The method's mean, its place among the methods that are no controls, and the best control's mean."""
    rows = scores[(scores.model == model) & (scores.measure == measure)].set_index("method")
    lower = metrics.get(measure).better == "lower"
    ours = rows[[not methods.get(name).control for name in rows.index]]["mean"].rank(ascending=lower, method="min")
    controls = rows[[methods.get(name).control for name in rows.index]]["mean"].sort_values(ascending=lower)
    row: Mapping[str, float] = rows.loc[method]
    return (
        f"{model}, {measure} {'↓' if lower else '↑'}: {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}], "
        f"number {ours[method]:.0f} of {len(ours)}; best control `{controls.index[0]}` {controls.iloc[0]:.3f}"
    )


def revealing(cheating: pd.DataFrame, accuracy: pd.DataFrame) -> list[str]:
    """One row per model of the study of cheating: the method whose energy on the cue tells the cheater best."""
    lines = []
    for model, rows in cheating.groupby("model"):
        best = rows[~rows.control].sort_values(["auroc", "difference"], ascending=False).iloc[0]
        control = rows[rows.control].auroc.max()
        right = accuracy.query("model == @model and role == 'clean' and cue == 'right'").accuracy.item()
        energy = f"{best.cheating:.3f} [{best.cheating_low:.3f}, {best.cheating_high:.3f}]"
        lines.append(
            f"| Does it cheat with a spurious cue ({model})? | `{best.method}` | energy on the cue {energy} if it cheats, "
            f"{best.clean:.3f} if not: AUROC {best.auroc:.2f}, best control {control:.2f} "
            f"([{best.n} images, one pair of trainings](docs/studies/cheating.md); the clean twin is right on {right:.0%}) |"
        )
    return lines


def question_table(scores: pd.DataFrame, cheating: pd.DataFrame, accuracy: pd.DataFrame) -> str:
    """The questions with the method to take and why."""
    lines = ["| question | take | because, in the demo (n = 32, mean [95 % interval]) |", "|---|---|---|"]
    for question, model, method, measure in QUESTIONS:
        lines.append(f"| {question} | `{method}` | {evidence(scores, model, method, measure)} |")
    return "\n".join([*lines, *revealing(cheating, accuracy)])


def main() -> None:
    if "--table" not in sys.argv:
        scored().to_csv(SCORES, index=False, float_format="%.4f", lineterminator="\n")
    path = ROOT / "README.md"
    table = question_table(*(pd.read_csv(path) for path in (SCORES, CHEATING, ACCURACY)))
    path.write_text(put(path.read_text(encoding="utf-8"), "questions", table), encoding="utf-8")


if __name__ == "__main__":
    main()
