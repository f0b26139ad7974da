"""A run folder: run.json, and one checksummed Parquet file per finished cell, written atomically."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from attncompare.benchmark.records import Record
from attncompare.errors import ResultFormatError

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
        ("device", pa.string()),
        ("threads", pa.int32()),
        ("batch_size", pa.int32()),
    ]
)


def write_atomically(path: Path, content: bytes) -> None:
    """All or nothing: a temporary file, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# Failures that another try may not meet, such as memory running out; the project's own errors are for good.
ACCIDENT = re.compile(r"(?!CaptureError|Unsupported|ImageError|SpecError|UnknownName)\w*(Error|Exception)\w*: ")
DIGEST = b"attncompare.sha256"


def _digest(table: pa.Table) -> bytes:
    """sha256 of column names and values."""
    content = json.dumps([table.column_names, table.to_pylist()], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest().encode()


def _read_verified(path: Path) -> pa.Table:
    """Read a shard; OSError or ArrowException unless every byte that matters is as it was written.

    Page checksums cover the values but not the footer (names, counts, encodings), hence the digest of the content.
    """
    table = pq.read_table(path, page_checksum_verification=True)
    expected = (table.schema.metadata or {}).get(DIGEST)
    try:
        found = _digest(table)
    except (ValueError, TypeError) as error:
        raise OSError(f"its content cannot be decoded: {error}") from error
    if found != expected:
        raise OSError("its content does not match its checksum")
    return table.replace_schema_metadata(None)


class ResultStore:
    """The records of a run, one file per cell; a file is there only when its cell is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where a cell's records lie."""
        return self.folder / "records" / f"{key[:32]}.parquet"

    def holds(self, key: str) -> bool:
        """Whether a cell is finished and readable; a damaged file is set aside in quarantine/ and counts as missing.

        So does a cell that failed by accident: it is tried again.
        """
        path = self.path(key)
        if not path.exists():
            return False
        try:
            stored = _read_verified(path)
        except (OSError, pa.ArrowException) as error:
            aside = self.folder / "quarantine" / path.name
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
            aside.with_suffix(".reason.txt").write_text(f"{error}\n")
            return False
        return bool(stored.num_rows) and not any(
            status == "failed" and ACCIDENT.match(detail)
            for status, detail in zip(stored["status"].to_pylist(), stored["detail"].to_pylist(), strict=True)
        )

    def write(self, key: str, records: Iterable[Record], columns: dict[str, Any]) -> None:
        """Finish a cell. columns: device, threads, batch_size, which are no part of the key."""
        rows = [asdict(record) | columns for record in records]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        table = table.replace_schema_metadata({DIGEST: _digest(table)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True, compression="zstd")
        write_atomically(self.path(key), sink.getvalue().to_pybytes())

    def read(self, keys: Sequence[str] | None = None) -> pd.DataFrame:
        """All records (or those of some cells) as one frame, in a fixed order."""
        folder = self.folder / "records"
        paths = sorted(folder.glob("*.parquet")) if keys is None else [self.path(key) for key in keys]
        if not paths:
            raise ResultFormatError(f"{self.folder} holds no finished records; run the benchmark again to go on")
        try:
            tables = [_read_verified(path) for path in paths]
            frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise ResultFormatError(
                f"a record file of {self.folder} cannot be read: {error}; run the benchmark again"
            ) from error
        order = ["model", "method", "measure", "protocol", "image"]
        return frame.sort_values(order, kind="stable").reset_index(drop=True)

    def write_manifest(self, manifest: dict[str, Any], name: str = "run.json") -> None:
        """Write run.json, or the file of that name which describes a shard."""
        write_atomically(self.folder / name, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())

    def manifest(self, name: str = "run.json") -> dict[str, Any]:
        """Read run.json, or the file of that name which describes a shard."""
        path = self.folder / name
        try:
            read: dict[str, Any] = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ResultFormatError(f"{path} cannot be read: {error}") from error
        return read


assert [field.name for field in fields(Record)][:10] == SCHEMA.names[:10]
