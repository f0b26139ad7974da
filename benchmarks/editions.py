"""Two editions of the package in one process: this checkout, and a commit in a git worktree of its own.

Numbers and times of the two can then be compared on one machine, in one state of it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
SWAPPED = ("attncompare", "golden")  # each edition has its own; the builders in tests/conftest.py serve both


class Edition:
    """The package as one checkout has it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, ModuleType] = {}

    @contextmanager
    def active(self) -> Iterator[Callable[[str], ModuleType]]:
        """The edition's modules are those that an import finds, also one that comes late, inside a function."""
        sys.path.insert(0, str(self.root))
        sys.modules.update(self.modules)
        try:
            found = import_module("attncompare").__file__
            assert Path(str(found)).is_relative_to(self.root), f"{found} is not of {self.root}"
            yield import_module
        finally:
            sys.path.remove(str(self.root))
            mine = [name for name in sys.modules if name.partition(".")[0] in SWAPPED]
            self.modules = {name: sys.modules.pop(name) for name in mine}


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "base"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", path, commit], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)
