"""What else decides a number beside the spec: versions, commit, machine, device, threads.

torch is imported where it is used: `attncompare --version` asks for the commit, and must not wait for it.
"""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attncompare import __version__

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "captum", "numpy", "scipy", "pyarrow", "openvino")
NAMES_A_REPOSITORY = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"}
"""Git sets these for its hooks. They name the repository of the hook, which need not be that of the package."""
DIRTY = "+dirty"
SECONDS = 10  # git answers in milliseconds; a folder of a network that hangs must not stop a run


def environment(device: str) -> dict[str, Any]:
    """What a result records of the process and the machine. Callers add their own `tuning`.

    >>> environment("cpu")["gpu"]
    ''
    """
    import torch

    versions = {"attncompare": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "versions": versions,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()} {platform.processor()}".strip(),
        "device": device,
        "gpu": gpu_name(device),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def gpu_name(device: str) -> str:
    """What a CUDA device calls itself, "" for others."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else ""


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Run with a fixed number of threads; the previous number is restored."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit that this package runs from, as 12 hex digits, so that a result can be traced to its source.

    "+dirty" follows where tracked files of the package differ from the commit. "" for an installed package, and where git
    is missing or fails. folder: the package to ask about.

    >>> set(commit().removesuffix("+dirty")) <= set("0123456789abcdef")
    True
    """
    if not _git(folder, "ls-files", "--", "__init__.py"):  # a repository that merely holds the virtual environment
        return ""
    found, changes = _git(folder, "rev-parse", "--short=12", "HEAD"), _git(folder, "status", "--porcelain", "-uno", ".")
    if not found or changes is None:
        return ""
    return found + (DIRTY if changes else "")


def _git(folder: Path, *words: str) -> str | None:
    """What git prints in a folder; None where it cannot be asked or fails. It writes nothing and starts no monitor."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    environment = {name: value for name, value in os.environ.items() if name not in NAMES_A_REPOSITORY}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
