"""attncompare: compare where CNNs and vision transformers look. Names load when first used, so the import is instant."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "AttentionCalls": "inspection.attention_calls",
    "AttributionMap": "maps",
    "BenchmarkSpec": "benchmark.spec",
    "Classifier": "inspection.structure",
    "Explainer": "explain",
    "SELayer": "inspection.structure",
    "Signal": "signals._base",
    "Meter": "benchmark.meter",
    "ModelAdapter": "models.adapter",
    "Record": "benchmark.records",
    "Run": "benchmark.run",
    "TokenLayout": "inspection.layout",
    "TrainSpec": "training.spec",
    "compare_maps": "benchmark.agreement",
    "explain_targets": "explain",
    "explain_together": "explain",
    "list_methods": "catalogue",
    "list_metrics": "catalogue",
    "list_models": "models.load",
    "list_protocols": "catalogue",
    "load_images": "data.images",
    "load_model": "models.load",
    "load_trained": "training.run",
    "make_explainer": "explain",
    "method": "methods._base",
    "open_dataset": "data.datasets",
    "record_layers": "benchmark.layer_maps",
    "run_benchmark": "benchmark.run",
    "score": "benchmark.single",
    "show_maps": "reporting.show",
    "signal": "signals._base",
    "train_model": "training.run",
    "wrap_model": "models.load",
}

_MODULES = {"figures": "reporting.figures", "modules": "modules", "studies": "studies", "tables": "reporting.tables"}

__all__ = sorted([*_PUBLIC, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        found = getattr(import_module(f"attncompare.{_PUBLIC[name]}"), name)
    elif name in _MODULES:
        found = import_module(f"attncompare.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'attncompare' has no attribute {name!r}")
    globals()[name] = found  # so that Python asks once
    return found


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from attncompare import modules as modules
    from attncompare import studies as studies
    from attncompare.benchmark.agreement import compare_maps as compare_maps
    from attncompare.benchmark.meter import Meter as Meter
    from attncompare.benchmark.records import Record as Record
    from attncompare.benchmark.run import Run as Run
    from attncompare.benchmark.run import run_benchmark as run_benchmark
    from attncompare.benchmark.single import score as score
    from attncompare.benchmark.spec import BenchmarkSpec as BenchmarkSpec
    from attncompare.catalogue import list_methods as list_methods
    from attncompare.catalogue import list_metrics as list_metrics
    from attncompare.catalogue import list_protocols as list_protocols
    from attncompare.data.datasets import open_dataset as open_dataset
    from attncompare.data.images import load_images as load_images
    from attncompare.explain import Explainer as Explainer
    from attncompare.explain import explain_targets as explain_targets
    from attncompare.explain import explain_together as explain_together
    from attncompare.explain import make_explainer as make_explainer
    from attncompare.inspection.attention_calls import AttentionCalls as AttentionCalls
    from attncompare.inspection.layout import TokenLayout as TokenLayout
    from attncompare.inspection.structure import Classifier as Classifier
    from attncompare.inspection.structure import SELayer as SELayer
    from attncompare.maps import AttributionMap as AttributionMap
    from attncompare.methods._base import method as method
    from attncompare.models.adapter import ModelAdapter as ModelAdapter
    from attncompare.models.load import list_models as list_models
    from attncompare.models.load import load_model as load_model
    from attncompare.models.load import wrap_model as wrap_model
    from attncompare.reporting import figures as figures
    from attncompare.reporting import tables as tables
    from attncompare.reporting.show import show_maps as show_maps
    from attncompare.signals._base import Signal as Signal
    from attncompare.signals._base import signal as signal
    from attncompare.training.run import load_trained as load_trained
    from attncompare.training.run import train_model as train_model
    from attncompare.training.spec import TrainSpec as TrainSpec
