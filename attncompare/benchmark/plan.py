"""The grid of a benchmark, cell by cell, each with the key that decides whether it is already done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from attncompare.adapters.base import ModelAdapter
from attncompare.benchmark.records import cell_key
from attncompare.benchmark.scoring import MetricRequest, choose_metrics
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.capture.targets import TargetScore, prompts_of, text_key
from attncompare.data.datasets import Dataset, Sample, open_dataset
from attncompare.errors import AttnCompareError, ImageError, SpecError, UnsupportedMethodError
from attncompare.explainer import make_job
from attncompare.loading import load_model
from attncompare.methods._base import Method, methods
from attncompare.metrics._base import Metric, metrics
from attncompare.metrics.protocols import get_protocol


@dataclass(frozen=True)
class Chunk:
    """Some images of a data set: the readable ones, and the reasons why the others are not."""

    samples: tuple[Sample, ...]
    unreadable: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One model, method and chunk; unsupported: the reason why the model cannot supply the method."""

    method: Method
    options: Mapping[str, object]
    key: str
    unsupported: str = ""


def chosen_methods(spec: BenchmarkSpec) -> list[Method]:
    """The methods of a spec in its order; "all" is every method, "quick" all but those that take hundreds of passes.

    Unknown names and options are errors here.
    """
    if spec.methods in (("all",), ("quick",)):
        chosen = [method for method in methods if spec.methods == ("all",) or not method.many_passes]
    else:
        chosen = [methods.get(name) for name in spec.methods]
    for name, given in spec.options.items():
        if name not in metrics.names():
            methods.get(name).resolve(given)
    return chosen


def chosen_metrics(spec: BenchmarkSpec) -> list[Metric]:
    """The metrics of a spec in its order, with their options; errors as in choose_metrics."""
    requests: list[MetricRequest] = [(name, spec.options.get(name, {})) for name in spec.metrics]
    return choose_metrics(requests, get_protocol(spec.protocol))


def options_of(spec: BenchmarkSpec, method: Method) -> dict[str, object]:
    """A method's options with their values; a method that has a seed takes the spec's unless it is given its own."""
    seeded = {"seed": spec.seed} if any(option.name == "seed" for option in method.options) else {}
    return method.resolve(seeded | spec.options.get(method.name, {}))


def check_target(spec: BenchmarkSpec, dataset: Dataset, models: Sequence[ModelAdapter]) -> None:
    """Raise unless every model has the target; "label" needs data with labels and models of the same classes.

    A protocol that asks whether the argmax is still the target needs a class.
    """
    protocol = get_protocol(spec.protocol)
    for model in models:
        if protocol.score == "argmax" and (model.embedding or prompts_of(spec.target, 1)):
            raise SpecError(f"protocol {protocol.name} asks for the argmax; {model.name} has no class as target")
    if spec.target not in ("argmax", "label"):
        for model in models:
            TargetScore.of(model, torch.zeros(1, model.anatomy.outputs), spec.target)
    if spec.target != "label":
        return
    if dataset.class_names is None:
        raise SpecError(f"target 'label': the data {spec.data!r} has no labels; use target 'argmax'")
    for model in models:
        if model.source.class_names != dataset.class_names:
            raise SpecError(f"target 'label': the classes of {model.name} are not those of the data {spec.data!r}")


def check_names(spec: BenchmarkSpec) -> None:
    """Raise for an unknown method, option, metric or protocol, before anything runs."""
    chosen_methods(spec)
    chosen_metrics(spec)


def read_chunk(dataset: Dataset, names: Sequence[str]) -> Chunk:
    """Load some samples; an unreadable image becomes a reason, not an end."""
    samples, unreadable = [], {}
    for name in names:
        try:
            samples.append(dataset.load(name))
        except ImageError as error:
            unreadable[name] = str(error)
    return Chunk(tuple(samples), unreadable)


def support(model: ModelAdapter, method: Method, options: Mapping[str, object]) -> str:
    """Why a model cannot be explained by a method, or "". A layer the model lacks counts as such a reason."""
    try:
        make_job(model, (method.name, options))
    except (UnsupportedMethodError, AttnCompareError) as error:
        return str(error)
    return ""


def plan_chunk(spec: BenchmarkSpec, model: ModelAdapter, chunk: Chunk) -> list[Cell]:
    """The cells of a model on a chunk. Host, device, threads and batch size are no part of a key."""
    images = [sample.content_hash for sample in chunk.samples] + sorted(
        f"unreadable {name}" for name in chunk.unreadable
    )
    names = [sample.name for sample in chunk.samples]
    wanted = chosen_metrics(spec)
    described = model.describe()
    parts = ("feature_layer", "tokens", "attention_blocks", "channel_attention", "classifier")
    anatomy = {part: described[part] for part in parts}
    prompts = prompts_of(spec.target, 1)
    cells = []
    for method in chosen_methods(spec):
        options = options_of(spec, method)
        key = cell_key(
            {
                "kind": "score",
                "model": model.name,
                "weights": model.weights_hash,
                "preprocessing": vars(model.source.preprocessing),
                "anatomy": anatomy,
                "method": method.name,
                "version": method.version,
                "options": options,
                "metrics": [metric.describe() for metric in wanted],
                "protocol": get_protocol(spec.protocol).describe(),
                "images": images,
                "names": names,
                "target": text_key(model, prompts) if prompts else spec.target,
                "dtype": spec.dtype,
                "seed": spec.seed,
                "maps": spec.save_maps,
            }
        )
        cells.append(Cell(method, options, key, support(model, method, options)))
    return cells


def describe_plan(spec: BenchmarkSpec) -> dict[str, object]:
    """The grid of a spec without running it: cells and, for perturbation metrics, forward passes per image and method."""
    check_names(spec)
    dataset = open_dataset(spec.data, spec.limit)
    chunks = -(-len(dataset.names) // spec.chunk_size)
    rows = []
    for name in spec.models:
        model = load_model(name, device=spec.device)
        usable = [m for m in chosen_methods(spec) if not support(model, m, options_of(spec, m))]
        protocol = get_protocol(spec.protocol)
        between = min(protocol.count(model.size) - 1, protocol.last(model.size))
        curves = {curve for metric in chosen_metrics(spec) for curve in metric.curves}
        rows.append(
            {
                "model": name,
                "methods": [m.name for m in usable],
                "refused": [m.name for m in chosen_methods(spec) if m not in usable],
                "cells": chunks * len(chosen_methods(spec)),
                "scoring_passes": len(dataset.names) * len(usable) * len(curves) * between,
            }
        )
    return {"images": len(dataset.names), "models": rows, "cells": sum(int(str(row["cells"])) for row in rows)}
