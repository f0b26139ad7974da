"""One chunk in pieces: images that are given up, models that fail on one image, and what is joined again."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from attncompare.benchmark import explained
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.session import Session
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.store import ResultStore
from attncompare.benchmark.worker import Worker
from attncompare.data.datasets import open_dataset
from attncompare.data.shapes import render_shape
from attncompare.errors import CaptureError, Failure
from attncompare.models.adapter import ModelAdapter
from attncompare.reporting.gallery import Gallery

TEXT = ["model", "method", "image", "target", "measure", "protocol", "status", "detail", "key"]


def plan(**changes):
    values = {"models": ("demo/se_cnn",), "methods": ("cam", "channel_attention"), "metrics": ("deletion",), "limit": 4}
    return BenchmarkSpec(**(values | {"protocol": "rise-fast", "timing": False, "save_maps": True} | changes))


def work_on(spec, folder, **how):
    session = Session.open(spec, open_dataset(spec.data, spec.limit))
    worker = Worker(spec, ResultStore(folder), lambda tick: None, 0)
    for model in session.models:
        worker.run_chunk(model, session.read(0), **how)
    return ResultStore(folder).read(worker.tally.keys)


def test_pieces_of_a_chunk_come_to_the_same_as_the_whole(tmp_path):
    whole = run_benchmark(plan(), tmp_path / "whole").records()
    names = list(whole.image[whole.image != ""].unique())
    apart = work_on(plan(), tmp_path / "apart", pieces=[names[:1], names[1:]])
    pd.testing.assert_frame_equal(apart[TEXT], whole[TEXT])
    np.testing.assert_allclose(apart.value, whole.value, rtol=0, atol=1e-6)
    assert (
        len(whole[(whole.method == "channel_attention") & (whole.measure == "deletion")]) == 1
    )  # refused once, for all
    kept = [sorted(path.name for path in (tmp_path / run / "maps").iterdir()) for run in ("whole", "apart")]
    assert kept[0] == kept[1]


def test_an_image_that_is_given_up_has_the_reason_and_the_others_their_values(tmp_path):
    whole = run_benchmark(plan(methods=("cam",)), tmp_path / "run").records()
    given_up = whole.image[0]
    rows = work_on(plan(methods=("cam",)), tmp_path / "other", lost={given_up: Failure("process", "it kills")})
    gone = rows.image == given_up
    assert set(rows[gone].measure) == {"target_score", "deletion"}
    assert set(rows[gone].status) == {"failed"} and set(rows[gone].detail) == {"it kills"}
    pd.testing.assert_frame_equal(rows[~gone][TEXT], whole[whole.image != given_up][TEXT])


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("odd"), KeyError("missing")])
def test_a_model_that_fails_on_one_image_is_explained_on_the_others(tmp_path, monkeypatch, error):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate("abcd"):
        Image.fromarray(render_shape(i).image).save(folder / f"{name}.png")
    spec = plan(methods=("cam",), data=str(folder), limit=None, save_maps=False)
    Image.new("RGB", (64, 64), "white").save(folder / "c.png")
    # the same pieces: a batch of another size may rank two pixels that are nearly tied the other way round
    whole = work_on(
        spec, tmp_path / "whole", lost={"c.png": Failure("process", "nothing")}, pieces=[["a.png", "b.png"], ["d.png"]]
    )
    forward = ModelAdapter.forward

    def faulty(model, images):
        if bool((images.flatten(1).amin(dim=1) > 0.99).any()):
            raise error
        return forward(model, images)

    monkeypatch.setattr(ModelAdapter, "forward", faulty)
    rows = run_benchmark(spec, tmp_path / "run").records()
    gone = rows.image == "c.png"
    assert set(rows[gone].detail) == {f"{error} ({type(error).__name__})"} and len(rows[gone]) == 2
    pd.testing.assert_frame_equal(rows[~gone][TEXT], whole[whole.image != "c.png"][TEXT])
    np.testing.assert_allclose(rows[~gone].value, whole[whole.image != "c.png"].value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "kind", "retry"),
    [(RuntimeError("CaptureError: no"), "error", True), (CaptureError("ValueError: no"), "capture", False)],
)
def test_what_is_tried_again_hangs_on_the_error_and_not_on_its_text(tmp_path, monkeypatch, error, kind, retry):
    def broken(*given):
        raise error

    spec = plan(methods=("cam",), limit=1)
    with monkeypatch.context() as patch:
        patch.setattr(explained, "explain_together", broken)
        rows = run_benchmark(spec, tmp_path).records()
    assert set(zip(rows.status, rows.kind, rows.retry, strict=True)) == {("failed", kind, retry)}
    again = run_benchmark(spec, tmp_path)
    assert again.computed == retry and set(again.records().status) == {"ok" if retry else "failed"}


def test_the_report_finds_the_maps_of_a_chunk_worked_on_in_pieces(tmp_path):
    spec = plan(methods=("cam",))
    run = run_benchmark(spec, tmp_path)
    name = run.records().image[0]
    before = Gallery.open(tmp_path).map("demo/se_cnn", "cam", name)
    for path in (tmp_path / "records").iterdir():
        path.unlink()
    names = list(run_benchmark(spec, tmp_path / "names").records().image.unique())
    work_on(spec, tmp_path, pieces=[[one] for one in names])
    np.testing.assert_allclose(Gallery.open(tmp_path).map("demo/se_cnn", "cam", name), before, rtol=0, atol=1e-3)


def test_an_image_without_finite_outputs_has_no_value_under_any_method(tmp_path, monkeypatch):
    """A control never looks at the model: its map is there, the model's score is not."""
    forward, calls = ModelAdapter.forward, []

    def broken(model, images):
        calls.append(len(images))
        outputs = forward(model, images)
        return outputs.index_fill(0, torch.tensor([0]), torch.nan) if calls == [4] else outputs  # the clean batch

    session = Session.open(plan(), open_dataset("shapes", 4))
    worker = Worker(plan(methods=("random_map", "cam"), save_maps=False), ResultStore(tmp_path), lambda tick: None, 0)
    monkeypatch.setattr(ModelAdapter, "forward", broken)
    worker.run_chunk(session.models[0], session.read(0))
    rows = worker.store.read(worker.tally.keys)
    bad = rows[rows.image == "shapes-test-00000"]
    assert set(bad.method) == {"random_map", "cam"} and set(bad.measure) == {"target_score", "deletion"}
    assert set(bad.status) == {"failed"} and bad.value.isna().all()
    assert set(bad.kind) == {"capture"} and not bad.retry.any()
    assert set(bad.detail) == {"demo/se_cnn returned non-finite outputs for this image"}
    assert set(rows[rows.image != "shapes-test-00000"].status) == {"ok"}
