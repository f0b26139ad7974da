"""An HTML table, to be put into a page of one's own."""

from html import escape

from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.content import Entry, Row, content
from attncompare.reporting.tables.markdown import titled


def html(run: Gallery) -> str:
    """One `<table>` with a body per model; the classes are named, the looks are the page's."""
    found = content(run)
    heads = "".join(f"<th>{escape(titled(measure))}</th>" for measure in found.columns)
    lines = ['<table class="attncompare">', f"<caption>{escape('. '.join(found.notes))}.</caption>"]
    lines.append(f"<thead><tr><th>method</th>{heads}</tr></thead>")
    for model, rows in found.sections.items():
        lines.append(f'<tbody><tr><th colspan="{len(found.columns) + 1}">{escape(model)}</th></tr>')
        lines += [f"<tr>{_name(row)}{''.join(map(_cell, row.entries))}</tr>" for row in rows]
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>", ""])


def _name(row: Row) -> str:
    title = f' title="constant maps: {row.constant}"' if row.constant else ""
    return f"<td{title}>{escape(row.method)}{row.marks}</td>"


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "<td></td>"
    text = {1: f"<b>{entry.number}</b>", 2: f"<u>{entry.number}</u>"}.get(entry.place, entry.number)
    small = f" <small>± {entry.half}</small>" if entry.half else ""
    failed = f", failed {entry.failed}" if entry.failed else ""
    return f'<td title="n = {entry.n}{failed}">{text}{entry.marks}{small}</td>'
