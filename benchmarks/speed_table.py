"""What scoring costs, for docs/protocols.md from the file of speed_scores.py: `python benchmarks/speed_table.py`."""

import pandas as pd
from method_table import ROOT, put
from results_table import RESULTS

PAGE = ROOT / "docs" / "protocols.md"
PROCESSES = {"library": "library call", "tuned": "command line", "openvino": "`--backend openvino`"}


def speed_table(rows: pd.DataFrame) -> str:
    """One line for each model and process, in Markdown."""
    lines = [
        "| model | process | ms | R / engine | engine / L | road / L | pytorch-grad-cam's / L | GFLOP/s | of a product's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, of_model in rows.groupby("model", sort=False):
        for process, words in PROCESSES.items():
            jobs = of_model[of_model.process == process].set_index("job")
            engine, peak = jobs.loc["engine"], jobs.loc["gemm", "gflop_per_s"]
            bare, peer = jobs.loc["L", "median_ms"], ""
            if "road peer" in jobs.index:
                peer = f"{jobs.loc['road peer', 'median_ms'] / bare:.1f}"
            cells = [
                str(model), words, f"{engine.median_ms:.1f} [{engine.min_ms:.1f}, {engine.max_ms:.1f}]",
                *(f"{engine[ratio]:.2f}" for ratio in ("R / engine", "engine / L", "road / L")), peer,
                f"{engine.gflop_per_s:.0f}", f"{engine.gflop_per_s / peak:.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    table = speed_table(pd.read_csv(RESULTS / "speed_scores.csv"))
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), "speed", table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
