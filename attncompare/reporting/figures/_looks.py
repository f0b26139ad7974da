"""Colors, dashes and markers that stay apart for the color-blind and in gray."""

from collections.abc import Iterable
from typing import Any

from attncompare.methods._base import methods

# Okabe & Ito without the yellow, which white paper swallows; neighbors differ in
# lightness, so that two methods with the same dash, six places apart, stay apart in gray.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1.5)), (0, (2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
CONTROLS = {"random_map": (0, (1, 1.5)), "center_map": (0, (5, 2)), "edge_map": (0, (5, 1.5, 1, 1.5))}
GRAY = "0.55"


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> color, dash and marker: no two methods share color and dash; controls are gray, with open markers.

    >>> looks(["cam", "random_map"])["random_map"]["color"]
    '0.55'
    """
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(controls_last(names)):
        look = {
            "color": COLORS[number % len(COLORS)],
            "linestyle": DASHES[number % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        if methods.get(name).control:
            look |= {"color": GRAY, "linestyle": CONTROLS.get(name, "--"), "markerfacecolor": "none"}
        found[name] = look
    return found


def controls_last(names: Iterable[str]) -> list[str]:
    """Sorted names of methods, controls at the end."""
    return sorted(set(names), key=lambda name: (methods.get(name).control, name))
