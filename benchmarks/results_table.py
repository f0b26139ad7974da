"""Where the tables of benchmarks/results come from."""

from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"


def write_table(table: pd.DataFrame, name: str, decimals: int = 3) -> None:
    """Write results/NAME.csv with four significant digits, and print the table."""
    table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
    print(table.round(decimals).to_string(index=False))
