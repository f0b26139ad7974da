"""Figures for print: one file per kind, found by import; each is a function of a run and a venue. And those of studies."""

from importlib import import_module
from typing import Any

from attncompare.reporting.figures._base import (
    VENUES,
    beyond_page,
    draw,
    kinds,
    save_figure,
    without_glyph,
    without_values,
)
from attncompare.reporting.figures._looks import COLORS
from attncompare.reporting.interactive import interactive, interactive_attention

_OF_STUDIES = {
    "causes_figure": "channel_attention",
    "cheating_figure": "cheating",
    "cheating_maps_figure": "cheating",
    "concepts_figure": "concepts",
    "distance_figure": "layer_trends",
    "gates_figure": "channel_attention",
    "inversion_figure": "inversion",
    "layers_figure": "layers",
    "top_classes_figure": "first_choices",
    "training_figure": "channel_attention",
    "trends_figure": "layer_trends",
}
"""Name -> module of attncompare/reporting/studies: functions of a study's result and a venue, loaded when first used."""

__all__ = [
    "COLORS",
    "VENUES",
    "beyond_page",
    "draw",
    "interactive",
    "interactive_attention",
    "kinds",
    "save_figure",
    "without_glyph",
    "without_values",
]


def __getattr__(name: str) -> Any:
    if name in _OF_STUDIES:
        return getattr(import_module(f"attncompare.reporting.studies.{_OF_STUDIES[name]}"), name)
    raise AttributeError(f"module 'attncompare.reporting.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_OF_STUDIES])
