"""The records of a run: run.json, and one sealed Parquet file per finished cell, written atomically."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
import pyarrow as pa

from attncompare.benchmark import seal
from attncompare.benchmark.records import SCHEMA_VERSION, Record
from attncompare.errors import ResultFormatError
from attncompare.storage.folder import CellFiles, Location, RunFolder

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("method", pa.string()),
        ("image", pa.string()),
        ("target", pa.int64()),
        ("measure", pa.string()),
        ("protocol", pa.string()),
        ("value", pa.float64()),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("key", pa.string()),
        ("curve", pa.list_(pa.float32())),
        ("degenerate", pa.bool_()),
        ("kind", pa.string()),
        ("retry", pa.bool_()),
        ("device", pa.string()),
        ("threads", pa.int32()),
        ("batch_size", pa.int32()),
        ("scored_by", pa.string()),
    ]
)


def is_final(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a cell is done: it has rows, none of which is due for a retry.

    Failures that were stored before the column `retry` existed are retried.
    """
    return bool(rows) and not any(row.get("retry", row["status"] == "failed") for row in rows)


class ResultStore:
    """The records of a run, one file per cell; a file is there only when its cell is finished.

    folder: a local path, or a URL that fsspec knows.
    """

    def __init__(self, folder: Location) -> None:
        self.files = RunFolder(folder)
        self.cells = CellFiles(self.files, "records", "parquet")
        self.folder = self.files.location

    def path(self, key: str) -> Location:
        """Where a cell's records lie."""
        return self.cells.path(key)

    def holds(self, key: str) -> bool:
        """Whether a cell is finished and readable; see `held`."""
        return key in self.held([key])

    def held(self, keys: Sequence[str]) -> set[str]:
        """Those of some cells that are finished; every byte of their files is checked.

        A damaged file is set aside in quarantine/ and counts as missing. So does a cell with a failure to be tried again.
        """
        names = {self.cells.name(key): key for key in keys}
        done = set()
        for name, content in self.files.read_those_there(list(names)).items():
            try:
                final = seal.state(content, names[name])
                if final is None:
                    final = is_final(seal.read_unsealed(content).select(["status"]).to_pylist())
            except (OSError, pa.ArrowException) as error:
                self._set_aside(name, str(error))
                continue
            if final:
                done.add(names[name])
        return done

    def present(self, keys: Sequence[str]) -> list[str]:
        """Those of some cells whose file is there, finished or failed, in the given order."""
        there = set(self.files.names("records"))
        return [key for key in keys if self.cells.name(key).removeprefix("records/") in there]

    def _set_aside(self, name: str, reason: str) -> None:
        """Move a damaged file to quarantine/, beside what was set aside before, and write down why."""
        stem, taken = name.removeprefix("records/").removesuffix(".parquet"), self.quarantined()
        tries = (stem if not i else f"{stem}.{i}" for i in range(len(taken) + 1))
        free = next(one for one in tries if f"{one}.parquet" not in taken)
        try:
            self.files.move(name, f"quarantine/{free}.parquet")
        except FileNotFoundError:  # another process of the run found the damage at the same time
            return
        self.files.write(f"quarantine/{free}.reason.txt", f"{reason}\n".encode())

    def quarantined(self) -> list[str]:
        """The damaged files that were set aside."""
        return [name for name in self.files.names("quarantine") if name.endswith(".parquet")]

    def write(self, key: str, records: Iterable[Record], columns: Mapping[str, Any]) -> None:
        """Finish a cell. columns: device, threads, batch_size, scored_by, which are no part of the key."""
        rows = [asdict(record) | dict(columns) for record in records]
        content = seal.encode(pa.Table.from_pylist(rows, schema=SCHEMA), key, is_final(rows))
        self.cells.write(key, content)

    def table(self, keys: Sequence[str] | None = None) -> pa.Table:
        """All records (or those of some cells), in no particular order; ResultFormatError for a damaged file."""
        if keys is None:
            keys = [name.removesuffix(".parquet") for name in self.files.names("records") if name.endswith(".parquet")]
        if not keys:
            raise ResultFormatError(f"{self.folder} holds no finished records; run the benchmark again to go on")
        tables = []
        for key in keys:
            try:
                tables.append(seal.decode(self.cells.read(key), key))
            except (OSError, pa.ArrowException) as error:
                raise ResultFormatError(
                    f"{self.path(key)} cannot be read: {error}; run the benchmark again to replace it"
                ) from error
        # columns that an earlier schema lacks are empty
        table = pa.concat_tables([SCHEMA.empty_table(), *tables], promote_options="default")
        for name, nothing in (("kind", ""), ("retry", False)):
            table = table.set_column(table.column_names.index(name), name, table[name].fill_null(nothing))
        return table

    def read(self, keys: Sequence[str] | None = None) -> pd.DataFrame:
        """All records (or those of some cells) as one frame, in a fixed order."""
        frame: pd.DataFrame = self.table(keys).to_pandas()
        order = ["model", "method", "measure", "protocol", "image"]
        return frame.sort_values(order, kind="stable").reset_index(drop=True)

    def write_manifest(self, manifest: Mapping[str, Any], name: str = "run.json") -> None:
        """Write run.json, or the file of that name which describes a shard, with the schema that the records have."""
        text = json.dumps({"schema": SCHEMA_VERSION, **manifest}, indent=2, sort_keys=True) + "\n"
        self.files.write(name, text.encode())

    def manifest(self, name: str = "run.json") -> dict[str, Any]:
        """Read run.json, or a shard's file; ResultFormatError when it cannot be read or comes from a later version."""
        path = self.files.full(name)
        try:
            read = json.loads(self.files.read(name))
            schema = read.get("schema", 1)
        except (OSError, ValueError, AttributeError) as error:
            raise ResultFormatError(f"{path} cannot be read: {error}") from error
        if schema > SCHEMA_VERSION:
            raise ResultFormatError(
                f"{path} has schema {schema}; this version reads up to {SCHEMA_VERSION}: update attncompare"
            )
        found: dict[str, Any] = read
        return found


assert [field.name for field in fields(Record)] == SCHEMA.names[: len(fields(Record))]
