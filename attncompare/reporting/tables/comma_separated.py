"""The whole summary as CSV."""

from attncompare.reporting.gallery import Gallery
from attncompare.reporting.spreadsheet import frame_as_csv
from attncompare.reporting.tables.content import content


def comma_separated(run: Gallery) -> str:
    """One row per model, method and measure, with failures and reasons.

    place: 1 for the best, 2 for the second, else 0. alike: 1 where the test finds no difference from the best.
    """
    marks = {
        (model, row.method, entry.measure): (entry.place, int(entry.alike))
        for model, rows in content(run).sections.items()
        for row in rows
        for entry in row.entries
        if entry is not None
    }
    frame, none = run.summary, (0, 0)
    found = [marks.get(owner, none) for owner in zip(frame.model, frame.method, frame.measure, strict=True)]
    return frame_as_csv(frame.assign(place=[mark[0] for mark in found], alike=[mark[1] for mark in found]))
