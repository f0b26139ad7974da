"""CSV that a spreadsheet opens without running anything in it."""

import csv
import io
import math

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula; it overlooks spaces before it."""


def _safe(text: object) -> object:
    """A CSV cell that no spreadsheet takes for a formula."""
    return f"'{text}" if isinstance(text, str) and text.lstrip(" ").startswith(FORMULA) else text


def frame_as_csv(frame: pd.DataFrame) -> str:
    """CSV of any frame: nothing in it is a formula, and what is missing is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_safe(name) for name in frame.columns])
    for row in frame.itertuples(index=False):
        writer.writerow([_safe(value) if not (isinstance(value, float) and math.isnan(value)) else "" for value in row])
    return buffer.getvalue()
