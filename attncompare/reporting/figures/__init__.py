"""Figures for print: one file per kind, found by import; each is a function of a run and a venue."""

from attncompare.reporting.figures._base import VENUES, draw, kinds, save_figure
from attncompare.reporting.figures._looks import COLOURS
from attncompare.reporting.interactive import interactive, interactive_attention

__all__ = ["COLOURS", "VENUES", "draw", "interactive", "interactive_attention", "kinds", "save_figure"]
