"""What there is: methods, metrics and protocols by name."""

import csv
from functools import cache
from importlib.resources import files
from itertools import takewhile

from attncompare.methods._base import methods
from attncompare.metrics._base import metrics
from attncompare.metrics.protocols import PROTOCOLS


def list_methods() -> list[str]:
    """Names of all methods.

    >>> "grad_cam" in list_methods()
    True
    """
    return methods.names()


def list_metrics() -> list[str]:
    """Names of all metrics.

    >>> "deletion" in list_metrics()
    True
    """
    return metrics.names()


def list_protocols() -> list[str]:
    """Names of all protocols.

    >>> list_protocols()
    ['chefer', 'grid14', 'rise', 'rise-fast', 'srg']
    """
    return sorted(PROTOCOLS)


@cache
def _measured() -> dict[str, str]:
    """Model name -> what a sweep over all families of models found it to supply."""
    text = (files("attncompare") / "capabilities.csv").read_text(encoding="utf-8")
    return {row["model"]: row["capabilities"] for row in csv.DictReader(text.splitlines())}


@cache
def _measured_by_file() -> dict[str, list[str]]:
    """Names of the measured architectures in each of timm's model files."""
    from attncompare.models.sources.timm import file_of

    found: dict[str, list[str]] = {}
    for name in _measured():
        if name.startswith("timm/"):
            found.setdefault(file_of(name.removeprefix("timm/")), []).append(name)
    return found


def _alike(a: str, b: str) -> int:
    """How many characters two names begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def capabilities(name: str) -> str:
    """What a model supplies, as measured with random weights; "-" when it is refused altogether, "" when not known.

    features: Grad-CAM and its kin; cam; class-attention; rollout; windows and hierarchy: attention in windows and its
    rollout; gates: channel attention; embedding: it has no classes. A timm model that was not measured is said to be
    like the measured one of its file whose name is nearest.

    >>> capabilities("torchvision/resnet18")
    'features cam'
    """
    name = name.partition("@")[0].partition(".")[0] if name.startswith("timm/") else name.partition("@")[0]
    if name in _measured() or not name.startswith("timm/"):
        return _measured().get(name, "")
    from attncompare.models.sources.timm import file_of

    relatives = _measured_by_file().get(file_of(name.removeprefix("timm/")), [])
    if not relatives:
        return ""
    nearest = max(relatives, key=lambda other: (_alike(name, other), -len(other)))
    return f"like {nearest.removeprefix('timm/')}: {_measured()[nearest]}"
