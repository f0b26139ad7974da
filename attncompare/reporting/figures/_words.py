"""How much room words take, and how to make them fit."""

import re

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

_metrics = TextToPath()
INSIDE, BREAK = r"(?:[^\s/_.\-]|(?<=\d)\.(?=\d))", r"(?:[/_\-]|(?<!\d)\.|\.(?!\d))"  # a dot in a number is no break
PIECE = rf"\s+|{INSIDE}*{BREAK}+|{INSIDE}+"


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """Inches that a line of text takes at a size in points.

    >>> width_of("wide", 10) == 2 * width_of("wide", 5) > 0
    True
    """
    font = FontProperties(size=100, weight="bold" if bold else "normal")  # large: hinting rounds small sizes
    return float(_metrics.get_text_width_height_descent(text, font, ismath=False)[0]) * size / 100 / 72


def fitted(text: str, width: float, size: float) -> str:
    """The text, or as much of its start as fits into a width in inches, with an ellipsis."""
    if width_of(text, size) <= width:
        return text
    kept = text
    while kept and width_of(kept.rstrip() + "…", size) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…" if kept else ""


def wrapped(text: str, width: float, size: float, *, bold: bool = False) -> str:
    r"""The text in lines no wider than a width in inches, broken at spaces and, in long names, after / _ . - or anywhere.

    A number stays whole.

    >>> wrapped("cat (0.25)", width_of("cat (0.", 8), 8)
    'cat\n(0.25)'
    """
    lines, line = [], ""
    for piece in re.findall(PIECE, text):
        for part in [piece] if width_of(piece, size, bold=bold) <= width else list(piece):
            if width_of((line + part).rstrip(), size, bold=bold) > width and line.strip():
                lines.append(line.strip())
                line = ""
            line += part
    return "\n".join([*lines, line.strip()] if line.strip() else lines)


def line_height(size: float) -> float:
    """Inches from one line to the next."""
    return size * 1.2 / 72
