"""What else decides a number beside the spec: versions, machine, device, threads."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "captum", "numpy", "scipy", "pyarrow", "openvino")


def environment(device: str) -> dict[str, Any]:
    """What a result records of the process and the machine. Callers add their `tuning`, which is no part of it.

    >>> environment("cpu")["gpu"]
    ''
    """
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()} {platform.processor()}".strip(),
        "device": device,
        "gpu": gpu_name(device),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def gpu_name(device: str) -> str:
    """What a CUDA device calls itself, "" for others."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else ""


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Run with a fixed number of threads; the previous number is restored."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
