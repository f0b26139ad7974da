"""What there is: methods, metrics and protocols by name."""

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
    ['grid14', 'rise', 'rise-fast']
    """
    return sorted(PROTOCOLS)
