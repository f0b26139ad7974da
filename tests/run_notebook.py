"""Run a notebook's script and leave behind what it made: `python run_notebook.py FILE OUT NAME...` (a process of its own).

Figures become PNG files and tables CSV, each by the name of its variable; maps become maps.npz, the plain values NAME...
values.json.
"""

import json
import sys
from pathlib import Path
from runpy import run_path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def main() -> None:
    out, plain = Path(sys.argv[2]), {}
    for name, value in run_path(sys.argv[1], run_name="__main__").items():
        if isinstance(value, Figure):
            value.savefig(out / f"{name}.png", dpi=100)
        elif isinstance(value, pd.DataFrame):
            value.reset_index().to_csv(out / f"{name}.csv", index=False)
        elif name == "maps":
            np.savez(out / "maps.npz", **{method: found.values.numpy() for method, found in value.items()})
        elif name in sys.argv[3:]:
            plain[name] = _text_keys(value)
    (out / "values.json").write_text(json.dumps(plain, default=str))


def _text_keys(value: object) -> object:
    return {str(key): _text_keys(one) for key, one in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
