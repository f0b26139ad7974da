"""What a second worker brings, what an engine costs and whether memory stays flat: `python benchmarks/scaling.py`.

Rates: one plan (demo models, 1 thread a process, interleaved rounds) as one process, as `--shard 1/2` beside `--shard 2/2`,
and by Ray with one and two workers. A rate is read from the times at which the cells of a run folder were finished, the
first and last tenth left out, so that neither the loading of models nor the last chunk alone counts. Efficiency of two Ray
workers: their rate over that of the two shards of the same round. Overhead: a plan of many chunks in which everything is
done already; a chunk by Ray less a chunk in one process is what Ray adds. Memory: resident size of one process while it
writes more than 10,000 records.

Writes benchmarks/results/scaling.csv: one row per quantity with median, minimum, maximum and n. The machine's load when a
row was measured is in it: rates of a machine that others use are lower, and only those of one round compare.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", RAY_USAGE_STATS_ENABLED="0")

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd

from attncompare.benchmark.execution import Execution
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.progress import Tick

RESULT = Path(__file__).parent / "results" / "scaling.csv"
PLAN = {"models": ["demo/cnn", "demo/vit"], "methods": ["saliency", "layer_cam"], "timing": False, "threads": 1}
CASES = {
    "one process": [{}],
    "two shards": [{"shard": (1, 2)}, {"shard": (2, 2)}],
    "ray, 1 worker": [{"engine": "ray", "workers": 1}],
    "ray, 2 workers": [{"engine": "ray", "workers": 2}],
}


def child(settings: dict, out: Path, task: str) -> subprocess.Popen[str]:
    """Run this file in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps({"settings": settings, "out": str(out), "task": task})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rate(folder: Path) -> float:
    """Cells per second in the middle eight tenths of a run."""
    times = sorted(path.stat().st_mtime for path in (folder / "records").iterdir())
    first, last = len(times) // 10, len(times) - 1 - len(times) // 10
    return (last - first) / (times[last] - times[first])


def measure_rates(rounds: int, images: int) -> dict[str, list[float]]:
    """Case -> one rate a round; and the efficiency of Ray's two workers in that round."""
    found = defaultdict(list)
    for _ in range(rounds):
        for case, processes in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                plan = {**PLAN, "limit": images, "chunk_size": 2}
                running = [child({"plan": plan, "execution": e}, Path(folder) / "run", "run") for e in processes]
                for process in running:
                    process.communicate()
                    assert process.returncode == 0
                found[f"cells per second, {case}"].append(rate(Path(folder) / "run"))
                print(case, round(found[f"cells per second, {case}"][-1], 3), flush=True)
        last = {case: found[f"cells per second, {case}"][-1] for case in CASES}
        found["efficiency, 2 ray workers over two shards"].append(last["ray, 2 workers"] / last["two shards"])
        found["efficiency, 1 ray worker over one process"].append(last["ray, 1 worker"] / last["one process"])
    return found


def measure_overhead(rounds: int, chunks: int) -> dict[str, list[float]]:
    """Milliseconds a chunk takes when its cells are there already."""
    plan = {**PLAN, "models": ["demo/cnn"], "methods": ["center_map"], "metrics": [], "limit": chunks, "chunk_size": 1}
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        child({"plan": plan, "execution": {}}, Path(folder), "run").communicate()
        for _ in range(rounds):
            took = {}
            for case in ("one process", "ray, 1 worker"):
                settings = {"plan": plan, "execution": CASES[case][0]}
                took[case] = json.loads(child(settings, Path(folder), "run").communicate()[0])["per_chunk"] * 1000
                found[f"ms per finished chunk, {case}"].append(took[case])
            found["ms that ray adds to a chunk"].append(took["ray, 1 worker"] - took["one process"])
    return found


def measure_memory(rounds: int) -> dict[str, list[float]]:
    """MiB resident after the first tenth of 10,000 records and at their end."""
    plan = {**PLAN, "models": ["demo/cnn"], "methods": ["center_map", "random_map", "edge_map"], "limit": 1200}
    plan |= {"metrics": ["sparseness", "complexity"], "chunk_size": 16}
    found = defaultdict(list)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            told = json.loads(child({"plan": plan, "execution": {}}, Path(folder) / "run", "run").communicate()[0])
        assert told["records"] >= 10_000, told
        for tenth in (1, 5, 10):
            found[f"MiB resident after {tenth * 10} % of {told['records']} records"].append(told["resident"][tenth - 1])
    return found


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_child(settings: dict, out: str) -> None:
    """Run a plan, and print what its progress shows."""
    import torch

    torch.set_num_threads(1)
    seen: list[tuple[float, int, float]] = []

    def progress(tick: Tick) -> None:
        seen.append((time.perf_counter(), tick.done / tick.total, resident()))

    execution = Execution(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings["execution"].items()})
    run = run_benchmark(BenchmarkSpec(**settings["plan"]), out, progress=progress, execution=execution)
    tenths = [next(size for _, done, size in seen if done >= (i + 1) / 10) for i in range(10)]
    per_chunk = (seen[-1][0] - seen[0][0]) / (len(seen) - 1)
    print(json.dumps({"per_chunk": per_chunk, "resident": tenths, "records": len(run.records())}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--chunks", type=int, default=150)
    parser.add_argument("--only", choices=["rates", "overhead", "memory"])
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        asked = json.loads(given.child)
        run_child(asked["settings"], asked["out"])
        return
    parts = {
        "rates": lambda: measure_rates(given.rounds, given.images),
        "overhead": lambda: measure_overhead(given.rounds, given.chunks),
        "memory": lambda: measure_memory(given.rounds),
    }
    rows = []
    for name in [given.only] if given.only else parts:
        for quantity, values in parts[name]().items():
            spread = {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
            command = " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]])
            load = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "command": command}
            rows.append({"quantity": quantity} | {k: round(v, 4) for k, v in spread.items()} | load)
    table = pd.DataFrame(rows)
    if RESULT.exists():
        before = pd.read_csv(RESULT)
        table = pd.concat([before[~before.quantity.isin(table.quantity)], table])
    table.to_csv(RESULT, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
