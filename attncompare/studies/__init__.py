"""Studies of one question each, beyond scoring maps: what a model keeps, uses, weighs and cheats with."""

from importlib import import_module
from typing import Any

_PUBLIC: dict[str, str] = {
    "AttentionDistances": "attention_distance",
    "ConceptStudy": "concepts",
    "CueTraining": "cheater",
    "GateComparison": "gate_comparison",
    "Inversion": "inversion",
    "LayerStudy": "layer_responses",
    "LayerTrends": "depth_trends",
    "TopClasses": "first_choices",
    "attention_distances": "attention_distance",
    "channel_attention": "gate_comparison",
    "cheating": "cheating_models",
    "compare_energies": "cue_energy",
    "cue_energies": "cue_energy",
    "invert": "inversion",
    "layer_trends": "depth_trends",
    "layers": "layer_responses",
    "tcav": "concepts",
    "top_classes": "first_choices",
}
"""Public name -> module of this package; loaded when first used."""

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"attncompare.studies.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'attncompare.studies' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
