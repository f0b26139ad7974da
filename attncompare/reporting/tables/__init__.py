"""Tables for print and for further work: LaTeX (booktabs), CSV, Markdown and HTML, from a run folder."""

from collections.abc import Callable

from attncompare.errors import unknown_name
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.comma_separated import comma_separated
from attncompare.reporting.tables.content import HEADS, SCALE, head, is_timing
from attncompare.reporting.tables.html import html
from attncompare.reporting.tables.latex import latex
from attncompare.reporting.tables.markdown import markdown
from attncompare.storage.folder import Location

__all__ = ["FORMATS", "HEADS", "SCALE", "head", "is_timing", "table"]

FORMATS: dict[str, Callable[[Gallery], str]] = {"tex": latex, "csv": comma_separated, "md": markdown, "html": html}


def table(folder: Location, kind: str) -> str:
    """The results of a run as "tex", "csv", "md" or "html"; UnknownNameError for another format."""
    if kind not in FORMATS:
        raise unknown_name("table format", kind, FORMATS)
    return FORMATS[kind](Gallery.open(folder))
