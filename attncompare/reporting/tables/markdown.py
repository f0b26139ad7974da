"""A Markdown table per model."""

import re

from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.content import Entry, content, head, is_timing


def markdown(run: Gallery) -> str:
    """Best bold, second underlined, half width of the interval; marks that the caption explains."""
    found = content(run)
    parts = [". ".join(map(escape, found.notes)) + ".", ""]
    for model, rows in found.sections.items():
        parts += [f"**{escape(model)}**", "", "| method | " + " | ".join(map(titled, found.columns)) + " |"]
        parts.append("|---|" + "---:|" * len(found.columns))
        parts += [f"| {escape(row.method)}{row.marks} | " + " | ".join(map(_cell, row.entries)) + " |" for row in rows]
        parts.append("")
    return "\n".join(parts)


def titled(measure: str) -> str:
    """The head of a column, and which way is better."""
    return head(measure) + ("" if is_timing(measure) else " ↓" if metrics.get(measure).better == "lower" else " ↑")


def escape(text: str) -> str:
    r"""Text that ends no cell and starts no markup.

    >>> print(escape("a|b <i>"))
    a\|b \<i\>
    """
    return re.sub(r"([\\|<>*`\[\]])", r"\\\1", re.sub(r"\s+", " ", text))


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return ""
    text = {1: f"**{entry.number}**", 2: f"<u>{entry.number}</u>"}.get(entry.place, entry.number)
    text += entry.marks
    return f"{text} ± {entry.half}" if entry.half else text
