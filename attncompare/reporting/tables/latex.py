"""A LaTeX table in the manner of booktabs."""

from attncompare.metrics._base import metrics
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.content import (
    ALIKE,
    CONSTANT,
    FAILED,
    NO_VALUE,
    Content,
    Entry,
    content,
    head,
    is_timing,
)

ARROWS = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}
MARKS = {ALIKE: r"\dagger", FAILED: r"\ddagger", CONSTANT: r"\S"}
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    **{sign: f"${mark}$" for sign, mark in MARKS.items()},
    NO_VALUE: "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
NOT_IN_OT1 = frozenset("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
WIDE = 6  # columns beyond which a table spans the page of a two-column paper


def latex(run: Gallery) -> str:
    """Best bold, second underlined, half width of the interval in small type; marks that the caption explains."""
    found = content(run)
    star = "*" if len(found.columns) > WIDE else ""
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{table{star}}}",
        r"\centering",
        rf"\caption{{{_caption(found)}}}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        r"\begin{tabular}{l" + "r" * len(found.columns) + "}",
        r"\toprule",
        " & ".join(["method", *map(_head, found.columns)]) + r" \\",
    ]
    for model, rows in found.sections.items():
        lines += [r"\midrule", rf"\multicolumn{{{len(found.columns) + 1}}}{{l}}{{\textbf{{{escape(model)}}}}} \\"]
        lines += [
            " & ".join([escape(row.method) + _raised(row.marks), *map(_cell, row.entries)]) + r" \\" for row in rows
        ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\end{{table{star}}}", ""])


def escape(text: str) -> str:
    r"""Any text as LaTeX that prints it; what pdflatex has no glyph for becomes its code point.

    >>> print(escape("50%_of $x"), escape("漢"))
    50\%\_of \$x U+6F22
    """
    return "".join(SPECIAL.get(c) or (c if _printed(c) else _code(c)) for c in text)


def _printed(character: str) -> bool:
    """Whether pdflatex prints it in its default encoding, OT1, without a package."""
    return character.isprintable() and ord(character) < 0x180 and character not in NOT_IN_OT1


def _code(character: str) -> str:
    return " " if character.isspace() else f"U+{ord(character):04X}"


def _caption(found: Content) -> str:
    return escape(". ".join(found.notes)).replace(" \\%", "\\,\\%") + "."


def _head(measure: str) -> str:
    return escape(head(measure)) + ("" if is_timing(measure) else f" {ARROWS[metrics.get(measure).better]}")


def _raised(marks: str) -> str:
    return f"$^{{{''.join(MARKS[mark] for mark in marks)}}}$" if marks else ""


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return escape(NO_VALUE)
    number = escape(entry.number)
    text = {1: rf"\textbf{{{number}}}", 2: rf"\underline{{{number}}}"}.get(entry.place, number)
    return text + _raised(entry.marks) + (rf" {{\tiny$\pm${entry.half}}}" if entry.half else "")
