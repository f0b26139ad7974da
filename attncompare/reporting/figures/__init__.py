"""Figures for print: one file per kind, found by import; each is a function of a run and a venue."""

from attncompare.reporting.figures._base import VENUES, draw, kinds, save_figure
from attncompare.reporting.figures._looks import COLOURS

__all__ = ["COLOURS", "VENUES", "draw", "kinds", "save_figure"]
