"""An HTML table, to be put into a page of one's own."""

from html import escape

from attncompare.reporting.gallery import Gallery
from attncompare.reporting.tables.content import Entry, content
from attncompare.reporting.tables.markdown import titled


def html(run: Gallery) -> str:
    """One `<table>` with a body per model; the classes are named, the looks are the page's."""
    found = content(run)
    heads = "".join(f"<th>{escape(titled(measure))}</th>" for measure in found.columns)
    lines = ['<table class="attncompare">', f"<caption>{escape('. '.join(found.notes))}.</caption>"]
    lines.append(f"<thead><tr><th>method</th>{heads}</tr></thead>")
    for model, rows in found.sections.items():
        lines.append(f'<tbody><tr><th colspan="{len(found.columns) + 1}">{escape(model)}</th></tr>')
        lines += [f"<tr><td>{escape(row.method)}</td>{''.join(map(_cell, row.entries))}</tr>" for row in rows]
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>", ""])


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "<td></td>"
    text = {1: f"<b>{entry.number}</b>", 2: f"<u>{entry.number}</u>"}.get(entry.place, entry.number)
    text += "†" if entry.alike else ""
    small = f" <small>± {entry.half}</small>" if entry.half else ""
    return f'<td title="n = {entry.n}">{text}{small}</td>'
