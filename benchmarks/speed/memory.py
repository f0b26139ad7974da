"""Peak memory of every method: each case in a fresh process, peak RSS less what it was after a plain forward.

    OMP_NUM_THREADS=2 python benchmarks/speed/memory.py --only 'grad_cam*'

Writes benchmarks/results/memory_methods.csv. A plain forward's own peak is measured the same way: RSS after the model was
loaded and its libraries warmed up by a forward of one small batch, then the peak while the measured call runs. Limits are
those of the issue. Rows that the file holds are skipped unless --again is given.
"""

import argparse
import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
from memory_cases import CASES, Case

from attncompare.methods._base import methods

RESULT = Path(__file__).parents[1] / "results" / "memory_methods.csv"
CHILD = Path(__file__).parent / "memory_cases.py"


def measured(name: str) -> dict[str, float]:
    """What the child process says of one case."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(CHILD), name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-600:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row_of(name: str, case: Case) -> dict[str, object]:
    """One case as a row: megabytes over the loaded model, beside the plain forward's and the limit."""
    found = measured(name)
    ratio = found["peak_mb"] / found["plain_mb"]
    met = "" if case.limit_ratio is None else "yes" if ratio <= case.limit_ratio else "no"
    if case.limit_mb is not None:
        met = "yes" if found["peak_mb"] <= case.limit_mb else "no"
    shown = {"case": name, "model": case.model, "batch": case.batch, **found, "ratio_to_plain": ratio}
    return {**shown, "limit_mb": case.limit_mb, "limit_ratio": case.limit_ratio, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="shell pattern of case names")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--again", action="store_true", help="measure rows that the file holds already")
    options = parser.parse_args()
    found = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=["case"])
    for name, case in CASES.items():
        held = found["case"] == name
        if not fnmatch(name, options.only) or (held.any() and not options.again):
            continue
        if case.by == "attncompare" and case.method not in methods.names():  # joins when the method exists
            continue
        row = pd.DataFrame([row_of(name, case)])
        found = pd.concat([found[~held], row]) if len(found) else row
        found = found.sort_values("case", kind="stable")
        options.out.parent.mkdir(exist_ok=True)
        found.to_csv(options.out, index=False, float_format="%.4g", lineterminator="\n")
        print(row.to_string(index=False, header=False), flush=True)


if __name__ == "__main__":
    main()
