"""A key names everything that decides a cell's values and nothing else: one case for each field, both ways."""

from dataclasses import replace
from enum import Enum
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.benchmark import plan as plan_module
from attncompare.benchmark.plan import Chunk, ModelPlan, chosen_methods, chosen_metrics, read_chunk
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.timing import timed
from attncompare.data.datasets import open_dataset
from attncompare.errors import Failure
from attncompare.metrics.user_protocols import get_protocol

SPEC = BenchmarkSpec(
    models=("demo/cnn",), methods=("occlusion",), metrics=("pointing_game",), options={"occlusion": {"window": 0.5}}
)
LABELED = SPEC.model_copy(update={"target": "label"})
SHAPES = open_dataset("shapes", 2)
CHUNK = Chunk(tuple(SHAPES.load(name) for name in SHAPES.names), {})


def model_of(change=lambda module: None):
    model = ac.load_model("demo/cnn")
    with torch.no_grad():
        change(model.module)
    return replace(model)  # without what it has cached


MODEL = model_of()


def key_of(spec=SPEC, model=MODEL, chunk=CHUNK):
    (cell,) = ModelPlan(spec, model).cells(chunk)
    return cell.key


BASE = key_of()


def first_sample(**changes):
    first, second = CHUNK.samples
    return Chunk((replace(first, **changes), second), {})


def sourced(**changes):
    return replace(MODEL, source=replace(MODEL.source, **changes))


def preprocessed(**changes):
    return sourced(preprocessing=replace(MODEL.source.preprocessing, **changes))


def add_buffer(module):
    module.register_buffer("extra", torch.ones(1), persistent=False)


CHANGED = {
    "weights": lambda: key_of(model=model_of(lambda module: next(module.parameters()).view(-1)[0].add_(1e-3))),
    "a buffer outside checkpoints": lambda: key_of(model=model_of(add_buffer)),
    "the model's name": lambda: key_of(model=sourced(name="demo/other")),
    "mean": lambda: key_of(model=preprocessed(mean=(0.4, 0.5, 0.5))),
    "std": lambda: key_of(model=preprocessed(std=(0.4, 0.5, 0.5))),
    "size": lambda: key_of(model=preprocessed(size=(64, 32))),
    "crop": lambda: key_of(model=preprocessed(crop=0.875)),
    "interpolation": lambda: key_of(model=preprocessed(interpolation="bicubic")),
    "bgr": lambda: key_of(model=preprocessed(bgr=True)),
    "embedding": lambda: key_of(model=sourced(embedding=True)),
    "feature layer": lambda: key_of(model=replace(MODEL, structure=replace(MODEL.structure, feature_layer="1"))),
    "gates": lambda: key_of(
        model=replace(MODEL, structure=replace(MODEL.structure, se_layers=(ac.SELayer("1", "2"),)))
    ),
    "method": lambda: key_of(SPEC.model_copy(update={"methods": ("cam",), "options": {}})),
    "an option of the method": lambda: key_of(SPEC.model_copy(update={"options": {"occlusion": {"window": 0.4}}})),
    "metric": lambda: key_of(SPEC.model_copy(update={"metrics": ("energy_inside",)})),
    "one metric more": lambda: key_of(SPEC.model_copy(update={"metrics": ("pointing_game", "sparseness")})),
    "an option of the metric": lambda: key_of(
        SPEC.model_copy(update={"options": SPEC.options | {"pointing_game": {"tolerance": 3}}})
    ),
    "protocol": lambda: key_of(SPEC.model_copy(update={"protocol": "grid14"})),
    "target": lambda: key_of(SPEC.model_copy(update={"target": 3})),
    "dtype": lambda: key_of(SPEC.model_copy(update={"dtype": "float64"})),
    "backend": lambda: key_of(SPEC.model_copy(update={"backend": "openvino"})),
    "seed": lambda: key_of(SPEC.model_copy(update={"seed": 1})),
    "pixels": lambda: key_of(chunk=first_sample(image=255 - CHUNK.samples[0].image)),
    "shape of the pixels": lambda: key_of(chunk=first_sample(image=CHUNK.samples[0].image.reshape(32, 128, 3))),
    "image name": lambda: key_of(chunk=first_sample(name="another")),
    "mask": lambda: key_of(chunk=first_sample(mask=~CHUNK.samples[0].mask)),
    "order of images": lambda: key_of(chunk=Chunk(CHUNK.samples[::-1], {})),
    "one image less": lambda: key_of(chunk=Chunk(CHUNK.samples[:1], {})),
    "an image that is unreadable now": lambda: key_of(
        chunk=Chunk(CHUNK.samples[:1], {CHUNK.samples[1].name: Failure("image", "why")})
    ),
}


@pytest.mark.parametrize("field", CHANGED)
def test_a_changed_field_misses(field):
    assert CHANGED[field]() != BASE


def test_every_change_is_another_key():
    keys = [change() for change in CHANGED.values()]
    assert len({BASE, *keys}) == len(keys) + 1


def test_versions_of_schema_method_metric_and_protocol_miss(monkeypatch):
    keys = {BASE}
    monkeypatch.setattr("attncompare.benchmark.records.SCHEMA_VERSION", 999)
    keys.add(key_of())
    monkeypatch.undo()
    newer = [replace(method, version=method.version + 1) for method in chosen_methods(SPEC)]
    monkeypatch.setattr(plan_module, "chosen_methods", lambda spec: newer)
    keys.add(key_of())
    monkeypatch.undo()
    metrics = [replace(metric, version=metric.version + 1) for metric in chosen_metrics(SPEC)]
    monkeypatch.setattr(plan_module, "chosen_metrics", lambda spec: metrics)
    keys.add(key_of())
    monkeypatch.undo()
    protocol = replace(get_protocol("rise"), version=get_protocol("rise").version + 1)
    monkeypatch.setattr(plan_module, "get_protocol", lambda name: protocol)
    keys.add(key_of())
    assert len(keys) == 5


def test_a_label_counts_where_it_is_the_target_and_only_there():
    other = first_sample(label=CHUNK.samples[0].label + 1)
    assert key_of(chunk=other) == BASE
    assert key_of(LABELED, chunk=other) != key_of(LABELED)


def test_a_mask_counts_where_a_metric_reads_it_and_only_there():
    plain, other = SPEC.model_copy(update={"metrics": ("sparseness",)}), first_sample(mask=None)
    assert key_of(plain, chunk=other) == key_of(plain) and key_of(chunk=other) != BASE


def test_a_class_by_name_counts_by_what_it_stands_for():
    names = MODEL.class_names
    spec = SPEC.model_copy(update={"target": f"class:{names[0]}"})
    assert key_of(spec, sourced(class_names=names[::-1])) != key_of(spec)


UNCHANGED = {
    "device": {"device": "cuda"},
    "threads": {"threads": 7},
    "batch size": {"batch_size": 3},
    "chunk size": {"chunk_size": 4},
    "limit": {"limit": 50},
    "data": {"data": "elsewhere"},
    "timing": {"timing": False, "repeats": 30, "timing_seconds": 3.0, "timing_batch": 4},
    "save_maps": {"save_maps": True},
    "other models": {"models": ("demo/vit", "demo/cnn")},
    "a metric's default, written out": {"options": SPEC.options | {"pointing_game": {"tolerance": 0}}},
    "an option of another method": {"options": SPEC.options | {"lime": {"n_samples": 5}}},
}


@pytest.mark.parametrize("field", UNCHANGED)
def test_what_decides_no_value_hits(field):
    assert key_of(SPEC.model_copy(update=UNCHANGED[field])) == BASE


def test_a_model_that_is_loaded_again_or_has_run_hits():
    again = model_of()
    ac.explain_together(again, ["saliency", "guided_backprop"], torch.rand(1, 3, 64, 64))
    assert key_of(model=replace(again)) == BASE


def test_the_wording_of_what_a_model_lacks_is_no_part_of_it():
    reworded = dict.fromkeys(MODEL.structure.missing, "other words")
    assert reworded and key_of(model=replace(MODEL, structure=replace(MODEL.structure, missing=reworded))) == BASE


SMALL = {"models": ("demo/cnn",), "methods": ("occlusion", "center_map"), "metrics": ("sparseness",), "limit": 4,
         "chunk_size": 2, "timing": False, "options": {"occlusion": {"window": 0.5}}}  # fmt: skip
RECOMPUTED = {
    "nothing": ({}, 0),
    "a method more": ({"methods": ("occlusion", "center_map", "edge_map")}, 2),
    "a method less": ({"methods": ("center_map",)}, 0),
    "order of methods": ({"methods": ("center_map", "occlusion")}, 0),
    "an option": ({"options": {"occlusion": {"window": 0.4}}}, 2),
    "a metric more": ({"metrics": ("sparseness", "complexity")}, 4),
    "protocol": ({"protocol": "grid14"}, 4),
    "target": ({"target": "label"}, 4),
    "seed": ({"seed": 1}, 4),
    "more images": ({"limit": 6}, 2),
    "fewer images": ({"limit": 3}, 2),
    "a model more": ({"models": ("demo/cnn", "demo/cnn@random")}, 4),
    "another checkpoint of the architecture": ({"models": ("demo/cnn@random",)}, 4),
    "batch size and threads": ({"batch_size": 1, "threads": 1}, 0),
    "save maps": ({"save_maps": True}, 4),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of four cells."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_benchmark(BenchmarkSpec(**SMALL), folder).computed == 4
    return folder


@pytest.mark.parametrize("change", RECOMPUTED)
def test_a_run_recomputes_exactly_the_cells_of_what_changed(finished, tmp_path, change):
    import shutil

    folder = shutil.copytree(finished, tmp_path / "run")
    values, expected = RECOMPUTED[change]
    run = run_benchmark(BenchmarkSpec(**(SMALL | values)), folder)
    assert run.computed == expected
    assert run_benchmark(BenchmarkSpec(**SMALL), folder).computed == 0


class Summed(nn.Module):
    """Two layers put together in one way, or another, with the same weights."""

    def __init__(self, scale: float = 1.0, groups: int = 1) -> None:
        super().__init__()
        self.first, self.head, self.scale = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3), scale
        self.groups = groups

    def forward(self, images):
        return self.head(self.first(images).relu().mean(dim=(2, 3)) * self.scale)


class Halved(Summed):
    """The same parts, another forward."""

    def forward(self, images):
        return self.head(self.first(images).sigmoid().mean(dim=(2, 3)) * self.scale)


def with_activation(activation):
    class Net(Summed):
        def forward(self, images):
            return self.head(activation(self.first(images)).mean(dim=(2, 3)))

    return Net


def wrapped(module):
    module.load_state_dict(WEIGHTS)
    return ac.wrap_model(module, size=(16, 16), name="user/net")


WEIGHTS = {name: torch.from_numpy(np.random.default_rng(len(name)).normal(size=value.shape).astype(np.float32))
           for name, value in Summed().state_dict().items()}  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [Halved, lambda: Summed(2.0), lambda: Summed(groups=2), with_activation(torch.tanh), with_activation(torch.relu)],
    ids=["forward", "setting", "number of groups", "closure tanh", "closure relu"],
)
def test_modules_of_the_same_weights_that_compute_something_else_share_no_cell(other):
    first, second = wrapped(Summed()), wrapped(other())
    assert first.weights_hash == second.weights_hash
    assert first.structure_hash != second.structure_hash
    assert key_of(model=first) != key_of(model=second)


def test_functions_that_a_forward_names_count():
    tanh, relu = (wrapped(with_activation(activation)()) for activation in (torch.tanh, torch.relu))
    assert tanh.structure_hash != relu.structure_hash
    assert wrapped(with_activation(torch.tanh)()).structure_hash == tanh.structure_hash


class Mode(Enum):
    """A setting of a user's module."""

    SUM = "sum"
    MEAN = "mean"


@pytest.mark.parametrize(
    "settings",
    [(partial(F.leaky_relu, negative_slope=0.1), partial(F.leaky_relu, negative_slope=0.2)), (Mode.SUM, Mode.MEAN)],
    ids=["partial", "enum"],
)
def test_a_setting_counts_whatever_it_is_written_as(settings):
    first, second, again = (wrapped(Summed(groups=value)).structure_hash for value in (*settings, settings[0]))
    assert first == again != second


def test_a_hook_of_the_users_own_counts():
    hooked = Summed()
    hooked.register_forward_hook(lambda module, given, found: found * 2)
    assert wrapped(hooked).structure_hash != wrapped(Summed()).structure_hash


def test_running_a_model_leaves_its_structure_and_weights_as_they_were(each_tiny, pictures):
    before = replace(each_tiny)
    assert before.structure_hash and before.weights_hash
    each_tiny.forward(pictures(each_tiny))
    after = replace(each_tiny)
    assert (after.structure_hash, after.weights_hash) == (before.structure_hash, before.weights_hash)


MACHINE = {
    "host": (timed.platform, "node", lambda: "another"),
    "gpu": (timed, "gpu_name", lambda device: "another GPU"),
    "threads": (timed.torch, "get_num_threads", lambda: 99),
    "torch": (timed.torch, "__version__", "9.9"),
    "tuning": (timed.tuning, "describe", lambda: {"layout": "channels_last"}),
    "matmul": (timed.torch, "get_float32_matmul_precision", lambda: "medium"),
    "protocol": (timed, "PROTOCOL_VERSION", 99),
}
"""What a timing depends on and a score does not -> where it is asked for, and another answer."""


@pytest.mark.parametrize("what", MACHINE)
def test_a_timing_of_another_machine_or_setting_is_not_reused(what, monkeypatch):
    spec = BenchmarkSpec(models=("demo/cnn",), methods=("cam",), limit=1)
    model, sample = ac.load_model("demo/cnn"), read_chunk(open_dataset("shapes", 1), ["shapes-test-00000"])
    keys = [timed._cells(spec, model, sample, "fp32")[0].key for _ in range(2)]
    monkeypatch.setattr(*MACHINE[what])
    assert keys[0] == keys[1] != timed._cells(spec, model, sample, "fp32")[0].key
