"""A plan of 50,000 images x 20 methods x 6 models: how long it takes to list, key and resume, and in how much memory.

No model runs. The images are names and content hashes, the models are descriptions around an empty module; keys come from
`ModelPlan`, finished cells are real sealed files that `ResultStore.held` reads and verifies byte by byte, and run.json is
written as a run does. All finished cells have the rows of one template, whose `key` column is not theirs. A second part
writes 10,000 records through the store and looks at how the memory grows from the 1,000th on.

Usage: python benchmarks/plan_scale.py --share 0.5 --out benchmarks/results/plan_scale.csv
(needs some 8 kB of disk for each finished cell under --folder; a finished share is removed afterward)
"""

import argparse
import csv
import hashlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import nn

import attncompare as ac
from attncompare.benchmark import seal
from attncompare.benchmark.plan import Chunk, ModelPlan
from attncompare.benchmark.records import Record
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import SCHEMA, ResultStore
from attncompare.inspection.layout import TokenLayout
from attncompare.inspection.structure import ModelStructure
from attncompare.models.adapter import ModelAdapter, ModelSource
from attncompare.models.preprocessing import Preprocessing

COLUMNS = {"device": "cpu", "threads": 1, "batch_size": 8}


@dataclass(frozen=True)
class DescribedImage:
    """What a plan needs of an image."""

    name: str

    @property
    def content_hash(self) -> str:
        """A sha256 like that of pixels."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def described_model(number: int) -> ModelAdapter:
    """A model of the size of ViT-B as far as a plan can see."""
    blocks = tuple(f"blocks.{block}.attn" for block in range(12))
    structure = ModelStructure(
        "vit", "blocks.11.norm1", TokenLayout(1, (14, 14), 0), blocks, token_blocks=blocks, outputs=1000
    )
    return ModelAdapter(ModelSource(f"simulated/{number}", nn.Identity(), Preprocessing((224, 224))), structure)


def chunks_of(images: int, size: int) -> Iterator[Chunk]:
    for start in range(0, images, size):
        names = [f"val_{i:08d}.JPEG" for i in range(start, min(start + size, images))]
        yield Chunk(tuple(DescribedImage(name) for name in names), {})  # type: ignore[arg-type]


def records_of(images: int, key: str) -> list[Record]:
    """The rows of a cell: the clean score, and two curves of 29 points."""
    random = np.random.default_rng(0)
    return [
        Record(
            "simulated/0", "grad_cam", f"val_{i:08d}.JPEG", 7, measure, "rise-fast", float(random.random()), "ok", "",
            key, random.random(29).tolist(),
        )
        for measure in ("target_score", "deletion", "insertion")
        for i in range(images)
    ]  # fmt: skip


def finish(store: ResultStore, keys: list[str], chunk_size: int) -> int:
    """Put sealed files of these cells on disk, without waiting for it; returns the size of one."""
    template = seal.encode(pa.Table.from_pylist([vars(r) | COLUMNS for r in records_of(chunk_size, keys[0])], SCHEMA),
                           keys[0], True)  # fmt: skip
    (Path(store.folder) / "records").mkdir(parents=True)
    for key in keys:
        Path(store.path(key)).write_bytes(seal.stamp(template, key))
    return len(template)


class Measured:
    """Rows of a table: wall and processor seconds, and the peak memory of the process so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    @contextmanager
    def step(self, name: str, **facts: object) -> Iterator[None]:
        """Measure what is done inside."""
        wall, used = time.perf_counter(), time.process_time()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        row = {
            "step": name,
            **facts,
            "wall_s": round(time.perf_counter() - wall, 2),
            "cpu_s": round(time.process_time() - used, 2),
            "peak_mb": peak,
            "load": round(os.getloadavg()[0], 1),
        }
        print(row, flush=True)
        self.rows.append(row)


def measure_plan(arguments: argparse.Namespace, measured: Measured) -> None:
    names = tuple(ac.list_methods()[: arguments.methods])
    spec = BenchmarkSpec(models=("demo/cnn",), methods=names, protocol="rise-fast")
    plans = [ModelPlan(spec, described_model(number)) for number in range(arguments.models)]
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    store, keys = ResultStore(folder), []
    try:
        with measured.step("list and key"):
            for chunk in chunks_of(arguments.images, spec.chunk_size):
                for plan in plans:
                    keys += [cell.key for cell in plan.cells(chunk)]
        assert len(set(keys)) == len(keys) == -(-arguments.images // spec.chunk_size) * len(names) * len(plans)
        done = keys[: int(len(keys) * arguments.share)]
        size = finish(store, done, spec.chunk_size) if done else 0
        with measured.step("resume: key, verify what is done, find what is missing, list it in run.json",
                           finished=len(done), file_bytes=size):  # fmt: skip
            found, missing = [], []
            for chunk in chunks_of(arguments.images, spec.chunk_size):
                for plan in plans:
                    cells = plan.cells(chunk)
                    held = store.held([cell.key for cell in cells])
                    found += [cell.key for cell in cells]
                    missing += [cell.key for cell in cells if cell.key not in held]
            store.write_manifest({"keys": store.present(found)})
        assert missing == keys[len(done) :]
        damaged = done[:: max(1, len(done) // 5)][:5]
        for key in damaged:
            content = bytearray(Path(store.path(key)).read_bytes())
            content[len(content) // 2] ^= 1
            Path(store.path(key)).write_bytes(content)
        assert set(done) - store.held(done) == set(damaged), "a damaged file was not found"
    finally:
        shutil.rmtree(folder)
    for row in measured.rows:
        row.update(images=arguments.images, methods=len(names), models=len(plans), cells=len(keys))


def resident_mb() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure_writing(arguments: argparse.Namespace, measured: Measured) -> None:
    """Write 10,000 records, 48 to a cell."""
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    store, written, before = ResultStore(folder), 0, 0.0
    try:
        with measured.step("write 10,000 records"):
            while written < 10_000:
                key = hashlib.sha256(str(written).encode()).hexdigest()
                store.write(key, records_of(16, key), COLUMNS)
                written += 48
                before = resident_mb() if written <= 1_008 else before
        measured.rows[-1]["growth_mb"] = round(resident_mb() - before, 1)
        with measured.step("read 10,000 records"):
            assert len(store.read()) == written
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--share", type=float, default=0.5, help="of the cells that are finished")
    parser.add_argument("--folder", default=None, help="where the files lie for the while")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = Measured()
    measure_writing(arguments, measured)
    writing, measured.rows = measured.rows, []
    measure_plan(arguments, measured)
    if arguments.out:
        rows = measured.rows + writing
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with open(arguments.out, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
