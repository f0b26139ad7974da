"""Where a run lies: a local folder, or any place that fsspec knows, such as "s3://bucket/run" or "memory://run"."""

import errno
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np

from attncompare.errors import SpecError, StorageError

Location = str | Path
"""A local path, or a URL as text."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|:)")
_SQUEEZED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")  # what pathlib makes of a URL


def is_url(location: Location) -> bool:
    """Whether a location is a URL; one letter before the colon is a drive.

    >>> is_url("memory://run"), is_url("runs/first"), is_url("C:/runs")
    (True, False, False)
    """
    return isinstance(location, str) and bool(_URL.match(location))


def _own_name() -> str:
    """What no other process that writes at the same time has in its file names, be they containers of one name."""
    return f"{os.getpid()}-{uuid4().hex[:12]}"


def write_atomically(path: Path, content: bytes) -> None:
    """All or nothing: a temporary file, flushed to disk, then renamed. StorageError when the disk is full.

    The temporary name is this process's own, so that two that write the same file do not meet.
    """
    temporary = path.with_name(f"{path.name}.{_own_name()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"no space left for {path.parent}; what is finished is kept: make room, then run the same command again"
        ) from error


def npz_of(arrays: Mapping[str, Any]) -> bytes:
    """Named arrays as the content of a compressed NPZ file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


class RunFolder:
    """Files by their name relative to the run, such as "records/KEY.parquet".

    Local writes are flushed to disk and renamed. Elsewhere a file is written under a temporary name and moved, which is
    as safe as the store's own move: on an object store a copy, which is all or nothing there.

    location: a Path, or the URL as it was given. SpecError for a URL whose plug-in is missing.

    >>> run = RunFolder("memory://doctest")
    >>> run.write("records/a.txt", b"one")
    >>> run.names("records"), run.read("records/a.txt")
    (['a.txt'], b'one')
    """

    def __init__(self, location: Location) -> None:
        self.location = location if is_url(location) else Path(location)
        self.store: Any = None
        if isinstance(self.location, Path):
            if _SQUEEZED.match(str(location)):
                raise SpecError(f"folder {location}: give a URL as text, not as a Path")
            return
        try:
            self.store, self.root = fsspec.core.url_to_fs(self.location)
        except (ImportError, ValueError) as error:
            raise SpecError(f"folder {location} cannot be opened: {error}") from error

    def full(self, name: str) -> Location:
        """The path or URL of a file."""
        return self.location / name if isinstance(self.location, Path) else f"{self.location.rstrip('/')}/{name}"

    def _inside(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""
        if isinstance(self.location, Path):
            return (self.location / name).read_bytes()
        content: bytes = self.store.cat_file(self._inside(name))
        return content

    def read_those_there(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Name -> content of the files that exist; elsewhere than on a disk they are asked for all at once."""
        if isinstance(self.location, Path):
            found: dict[str, bytes] = {}
            for name in names:
                try:
                    found[name] = (self.location / name).read_bytes()
                except FileNotFoundError:
                    continue
            return found
        by_path = {self._inside(name): name for name in names}
        answers = self.store.cat(list(by_path), on_error="return") if names else {}
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
        return {by_path[path]: answer for path, answer in answers.items() if isinstance(answer, bytes)}

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        if isinstance(self.location, Path):
            write_atomically(self.location / name, content)
            return
        path = self._inside(name)
        self.store.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = f"{path}.{_own_name()}.tmp"
        try:
            self.store.pipe_file(temporary, content)
            self.store.mv(temporary, path)
        except BaseException:
            if self.store.exists(temporary):
                self.store.rm_file(temporary)
            raise

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (
            (self.location / name).exists()
            if isinstance(self.location, Path)
            else self.store.exists(self._inside(name))
        )

    def names(self, folder: str) -> list[str]:
        """The files in a folder of the run, sorted; none when it does not exist. Unfinished ones do not count."""
        try:
            if isinstance(self.location, Path):
                found = os.listdir(self.location / folder)
            else:
                self.store.invalidate_cache()  # others may have written
                found = [path.rpartition("/")[2] for path in self.store.ls(self._inside(folder), detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.endswith(".tmp"))

    def remove(self, name: str) -> None:
        """Delete a file."""
        if isinstance(self.location, Path):
            (self.location / name).unlink()
        else:
            self.store.rm_file(self._inside(name))

    def move(self, name: str, to: str) -> None:
        """Move a file inside the run."""
        if isinstance(self.location, Path):
            target = self.location / to
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.location / name, target)
            return
        self.store.makedirs(self._inside(to).rpartition("/")[0], exist_ok=True)
        self.store.mv(self._inside(name), self._inside(to))


@dataclass(frozen=True)
class CellFiles:
    """The files of one kind, one for each cell, named by the first half of its key.

    >>> CellFiles(RunFolder("memory://doctest"), "maps", "npz").name("0123456789abcdef" * 4)
    'maps/0123456789abcdef0123456789abcdef.npz'
    """

    files: RunFolder
    folder: str
    ending: str

    def name(self, key: str) -> str:
        """The name within the run."""
        return f"{self.folder}/{key[:32]}.{self.ending}"

    def path(self, key: str) -> Location:
        """The path or URL."""
        return self.files.full(self.name(key))

    def exists(self, key: str) -> bool:
        """Whether the file is there, readable or not."""
        return self.files.exists(self.name(key))

    def read(self, key: str) -> bytes:
        """Its content; FileNotFoundError when there is none."""
        return self.files.read(self.name(key))

    def write(self, key: str, content: bytes) -> None:
        """Write it, whole or not at all."""
        self.files.write(self.name(key), content)
