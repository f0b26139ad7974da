"""A Parquet file that carries the sha256 of all its bytes, so that damage anywhere is found without decoding it.

Page checksums cover the values but not the footer (names, counts, encodings). The seal covers both: it stands in the
footer's metadata and is taken with zeros in its own place. Checking it costs as much as reading the file, which is what
lets a run of hundreds of thousands of cells be verified whenever it is resumed.
"""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq

_MARK = b"attncompare sha256="
_BLANK = b"0" * 64
_STATES = {b" final": True, b" retry": False}
_OLD_DIGEST = b"attncompare.sha256"


def encode(table: pa.Table, key: str, final: bool) -> bytes:
    """A table as a sealed file of one cell. final: whether the cell is done, or to be tried again."""
    state = next(text for text, value in _STATES.items() if value == final)
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({b"seal": _MARK + _BLANK + state})
    pq.write_table(marked, sink, write_page_checksum=True, compression="zstd")
    return stamp(sink.getvalue().to_pybytes(), key)


def stamp(content: bytes, key: str) -> bytes:
    """Seal a file, in place of the seal that it has, as that of one cell."""
    start = content.rindex(_MARK) + len(_MARK)
    return content[:start] + _digest(content, start, key) + content[start + 64 :]


def _digest(content: bytes, start: int, key: str) -> bytes:
    """sha256 of a file with its seal, 64 hex digits from `start`, as zeros; the cell's name makes part of it."""
    digest = hashlib.sha256(key[:32].encode())
    for part in (content[:start], _BLANK, content[start + 64 :]):
        digest.update(part)
    return digest.hexdigest().encode()


def state(content: bytes, key: str) -> bool | None:
    """Whether a sealed file is of a cell that is done; None when it has no seal. OSError when it is damaged."""
    start = content.rfind(_MARK) + len(_MARK)
    if start < len(_MARK):
        return None
    if content[start : start + 64] != _digest(content, start, key):
        raise OSError("its content does not match its checksum")
    return _STATES[content[start + 64 : start + 70]]


def decode(content: bytes, key: str) -> pa.Table:
    """Read a file; OSError or ArrowException unless every byte that matters is as it was written."""
    if state(content, key) is None:
        return read_unsealed(content)
    table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    return table.replace_schema_metadata(None)


def read_unsealed(content: bytes) -> pa.Table:
    """Read a file as they were before there were seals: with a sha256 of column names and values."""
    table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    expected = (table.schema.metadata or {}).get(_OLD_DIGEST)
    try:
        text = json.dumps([table.column_names, table.to_pylist()], separators=(",", ":"))
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"its content cannot be decoded: {error}") from error
    if hashlib.sha256(text.encode()).hexdigest().encode() != expected:
        raise OSError("its content does not match its checksum")
    return table.replace_schema_metadata(None)
