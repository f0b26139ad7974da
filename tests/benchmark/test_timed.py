"""The timing pass: what is measured, in which process, and what becomes of a method that breaks it."""

import json
import sys
from itertools import count

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.benchmark.records import TIMING_MEASURES
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.timing import isolated
from attncompare.benchmark.timing import process as timed_process
from attncompare.benchmark.timing.device import Device
from attncompare.benchmark.timing.isolated import measure_apart
from attncompare.benchmark.timing.measured import changed_map
from attncompare.benchmark.timing.process import NO_METER, PLAIN, Measured, Request, measure
from attncompare.benchmark.timing.variants import refusal
from attncompare.errors import Failure
from attncompare.methods._base import methods
from attncompare.reporting.tables import table
from attncompare.tuning import Tuning

CNN = "demo/cnn@random"
METHODS = {"vit": ["saliency", "attention_rollout", "grad_cam"], "cnn": ["cam", "saliency", "grad_cam"]}


def request(*jobs, **changes):
    values = {
        "model": CNN, "weights": "", "device": "cpu", "threads": 1, "variant": "fp32",
        "jobs": {name: methods.get(name).resolve({}) for name in jobs}, "target": [0],
        "repeats": 3, "seconds": 0.0, "tuning": vars(Tuning()), "matmul": "highest",
    }  # fmt: skip
    return Request(**(values | changes))


def fake_device():
    """Every look at the clock is a second later; every peak is 7 bytes over the bytes in use."""
    seconds = count()
    return Device(lambda: float(next(seconds)), lambda: None, lambda: 100, lambda: 107)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_timed_beside_the_plain_forward(tiny, pictures, name):
    model, said = tiny(name), []
    images = pictures(model, 1)
    found, deviation = measure(model, images, request(*METHODS[name]), fake_device(), said.append)
    assert list(found) == [PLAIN, *METHODS[name]] and deviation == 0
    for method in METHODS[name]:
        one, made = found[method], ac.make_explainer(model, method).explain(images, torch.tensor([0]))
        assert one.timing.seconds == (1.0,) * 3
        assert one.peak == 7
        assert one.passes == (made.passes_forward, made.passes_backward)
        assert torch.equal(one.first, made.values) and torch.equal(one.last, made.values)
    assert set(said) == set(found)


def test_time_and_memory_can_be_measured_apart(tiny, pictures):
    model = tiny("cnn")
    images = pictures(model, 1)
    slow = measure(model, images, request("cam", memory=False), fake_device(), print)[0]
    heavy = measure(model, images, request("cam", time=False), fake_device(), print)[0]
    assert (slow["cam"].timing is None, slow["cam"].peak) == (False, None)
    assert (heavy["cam"].timing, heavy["cam"].peak) == (None, 7)


def test_a_method_that_raises_is_left_out_of_the_rounds(tiny, pictures):
    model = tiny("vit")
    found, _ = measure(model, pictures(model, 1), request("saliency", "cam", "deep_lift"), fake_device(), print)
    assert (found["cam"].failure.kind, found["deep_lift"].failure.kind) == ("unsupported", "unsupported")
    assert found["deep_lift"].failure.reason.startswith("deep_lift: the score")
    assert found["deep_lift"].timing is None and found["saliency"].timing is not None


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "attention_rollout", "grad_cam", "occlusion"])
def test_one_image_again_costs_the_passes_of_another_image(tiny, pictures, method):
    """No hidden cache: what is timed on one image, over and over, is what a new image costs."""
    model, calls = tiny("vit"), []
    explainer = ac.make_explainer(model, method)
    images = pictures(model, 4)
    explainer.explain(images[:1], 0)  # the check of the recorded logits is over
    blocks = [model.module, model.module.blocks[0], model.module.head]
    hooks = [block.register_forward_pre_hook(lambda module, given: calls.append(len(given[0]))) for block in blocks]
    counts = []
    for image in (images[0], images[0], images[0], images[1], images[2], images[3]):
        calls.clear()
        explainer.explain(image[None], 0)
        counts.append(sum(calls))
    for hook in hooks:
        hook.remove()
    assert len(set(counts)) == 1 and counts[0] >= 3


def test_the_map_made_while_timed_must_be_the_one_that_is_scored():
    scored = torch.tensor([[[4.0, -1.0], [0.5, 0.0]]])
    same = Measured(first=scored, last=scored * (1 + 1e-6))
    assert changed_map(same, "fp32", scored) == ""
    other = Measured(first=scored, last=scored + torch.tensor([0.0, 0.01]))
    assert changed_map(other, "fp32", scored) == (
        "the map made while timed differs from the one that is scored by 0.01, its largest value is 4"
    )
    assert "is (1, 2, 2), the one that is scored (1, 3, 3)" in changed_map(same, "fp32", torch.zeros(1, 3, 3))
    rounded = Measured(first=scored * 1.05, last=scored * 1.05)
    assert changed_map(rounded, "bf16", scored) == ""
    assert changed_map(rounded, "compile", scored) != ""
    assert changed_map(Measured(first=scored, last=scored * 1.05), "bf16", scored) != ""


CHILD = """
import json, os, sys
folder = sys.argv[1]
request = json.load(open(folder + "/request.json"))
print("(plain forward)", flush=True)
for name in request["jobs"]:
    print(name, flush=True)
    {fault}
one = {{"timing": {{"seconds": [2.0] * 3, "device_seconds": []}}, "peak": 5, "no_peak": None, "passes": [1, 0],
       "failure": None, "first": None, "last": None}}
if not request["time"]:
    one["timing"] = None
names = ["(plain forward)", *request["jobs"]]
json.dump({{"deviation": 0.0, "measured": {{name: one for name in names}}}}, open(folder + "/results.json", "w"))
import numpy
numpy.savez(folder + "/maps.npz")
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Put a child process in place that runs some code before each method."""

    def put(fault):
        (tmp_path / "child.py").write_text(CHILD.format(fault=fault))
        monkeypatch.setattr(isolated, "COMMAND", (sys.executable, str(tmp_path / "child.py")))

    return put


def test_a_method_that_kills_its_process_is_named_and_the_others_are_measured(child):
    child('name == "cam" and os.kill(os.getpid(), 9)')
    said: list[str] = []
    found = measure_apart(request("saliency", "cam", "grad_cam"), torch.rand(1, 3, 64, 64), said.append)
    said_why = "the timing process was killed by SIGKILL, most often for lack of memory, while it ran cam"
    assert found.measured["cam"].failure == Failure("process", said_why, retry=True)
    for name in ("saliency", "grad_cam"):
        assert (found.measured[name].timing.seconds, found.measured[name].peak) == ((2.0,) * 3, 5)
    assert said == [PLAIN, "saliency", "cam"] + [PLAIN, "saliency", "grad_cam"] * 2


def test_a_failure_comes_out_of_the_process_as_it_was(tmp_path, monkeypatch):
    failures = {"cam": Failure("unsupported", "no, 'ü'"), "saliency": Failure("memory", "none left", retry=True)}
    found = {PLAIN: Measured(), **{name: Measured(failure=one, no_peak=one) for name, one in failures.items()}}
    monkeypatch.setattr(timed_process, "measure", lambda *given: (found, 0.0))
    monkeypatch.setattr(timed_process.os, "dup2", lambda *files: None)
    monkeypatch.setattr(timed_process, "tune", lambda tuning: None)
    asked = request(*failures, threads=torch.get_num_threads(), weights=ac.load_model(CNN).weights_hash)
    (tmp_path / "request.json").write_text(json.dumps(vars(asked)))
    np.save(tmp_path / "images.npy", torch.rand(1, 3, 64, 64).numpy())
    timed_process.main(tmp_path)
    read = isolated._read(tmp_path).measured
    assert {name: (one.failure, one.no_peak) for name, one in read.items()} == {
        PLAIN: (None, None), **{name: (one, one) for name, one in failures.items()}
    }  # fmt: skip


def test_a_method_that_runs_out_of_memory_when_it_is_measured_keeps_its_time(child):
    child('name == "cam" and not request["time"] and sys.exit("no room")')
    found = measure_apart(request("cam", "saliency"), torch.rand(1, 3, 64, 64), lambda name: None).measured
    assert found["cam"].timing is not None and found["cam"].peak is None
    assert found["cam"].no_peak.reason == "the timing process ended with code 1 while it ran cam: no room"
    assert found["saliency"].peak == 5


def test_a_system_that_does_not_tell_the_peak_says_so(child, monkeypatch):
    child("pass")
    monkeypatch.setattr(isolated, "_read", lambda folder, read=isolated._read: without_meter(read(folder)))
    found = measure_apart(request("cam"), torch.rand(1, 3, 64, 64), lambda name: None).measured["cam"]
    assert (found.peak, found.no_peak) == (None, NO_METER)


def without_meter(found):
    for one in found.measured.values():
        one.peak, one.no_peak = None, NO_METER
    return found


def test_memory_is_measured_where_the_allocator_gives_back(child, tmp_path):
    child(
        f"open({str(tmp_path / 'seen')!r}, 'a').write(json.dumps([request['time'], request['tuning']['keep_memory'], "
        "os.environ.get('MALLOC_MMAP_THRESHOLD_')]) + '\\n')"
    )
    kept = vars(Tuning(keep_memory=True))
    measure_apart(request("cam", tuning=kept), torch.rand(1, 3, 64, 64), lambda name: None)
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert seen == [[True, True, None], [False, False, "65536"]]


def small(**changes):
    values = {"models": (CNN,), "methods": ("cam",), "limit": 1, "repeats": 3, "timing_seconds": 0.0}
    return BenchmarkSpec(**(values | {"timing_only": True} | changes))


def test_a_child_that_dies_fails_its_records_and_the_run_goes_on(tmp_path, child):
    child("raise SystemExit('broken')")
    run = run_benchmark(small(timing_only=False, timing_batch=3, methods=("cam", "class_attention")), tmp_path)
    rows = run.records()
    timed = rows[rows.measure.isin(TIMING_MEASURES)]
    assert set(timed[timed.method == "cam"].status) == {"failed"}
    assert set(timed.batch_size) == {3} and set(rows.drop(timed.index).batch_size) == {8}
    assert "while it ran cam: broken" in timed[timed.method == "cam"].detail.iloc[0]
    assert set(timed[timed.method == "class_attention"].status) == {"unsupported"}
    assert rows[(rows.measure == "insertion") & (rows.method == "cam")].status.iloc[0] == "ok"
    assert run.failed == len(TIMING_MEASURES)


def test_a_process_of_its_own_times_what_is_missing_and_nothing_twice(tmp_path, monkeypatch):
    first = run_benchmark(small(), tmp_path)
    rows = first.records()
    assert (first.computed, first.failed) == (1, 0)
    assert set(rows.measure) == set(TIMING_MEASURES) and set(rows.protocol) == {"fp32"}
    values = dict(zip(rows.measure, rows.value, strict=True))
    assert (values["passes_forward"], values["passes_backward"], values["latency_n"]) == (1, 0, 3)
    assert values["latency_p10"] <= values["latency_median"] <= values["latency_p90"]
    asked = []

    def broken(folder, request, *rest):
        asked.append([*request.jobs])
        return "center_map", Failure("process", "broken", retry=True)

    monkeypatch.setattr(isolated, "_run_child", broken)
    more = run_benchmark(small(methods=("cam", "center_map")), tmp_path)
    assert (more.computed, more.reused, asked) == (1, 1, [["center_map"]])
    np.testing.assert_array_equal(rows.value, more.records().query("method == 'cam'").value)
    for change in ({"threads": 2}, {"timing_batch": 2}, {"timing_variants": ("bf16",)}, {"repeats": 4}):
        asked.clear()
        run_benchmark(small(**change), tmp_path)
        assert asked == [["cam"]]


def test_other_weights_than_those_of_the_run_are_not_timed():
    found = measure_apart(request("cam", weights="0" * 64), torch.rand(1, 3, 64, 64), lambda name: None)
    assert "has other weights when it is loaded again" in found.measured["cam"].failure.reason
    assert "before it ran anything" in found.measured["cam"].failure.reason


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_bf16_runs_the_model_in_bfloat16_and_says_what_that_changes(fresh, pictures, name):
    model = fresh(name)
    images = pictures(model, 1)
    plain = ac.make_explainer(model, "saliency").explain(images, 0)
    found, deviation = measure(model, images, request("saliency", variant="bf16"), fake_device(), print)
    assert 1e-5 < deviation < 0.1
    one = found["saliency"]
    assert (one.failure, one.passes, one.last.dtype) == (None, (1, 1), torch.float32)
    assert 0 < float((one.last - plain.values).abs().max()) < 0.2 * float(plain.values.abs().max())
    assert torch.equal(one.first, one.last)


def test_a_compiled_model_is_not_read_from_inside():
    refused = {method.name for method in methods if refusal("compile", method)}
    assert {"grad_cam", "attention_rollout", "legrad", "guided_backprop"} <= refused
    assert refused.isdisjoint({"saliency", "integrated_gradients", "occlusion", "rise", "random_map"})
    assert not any(refusal(variant, method) for variant in ("fp32", "bf16") for method in methods)
    assert "grad_cam reads feature_gradients, features inside the model" in refusal("compile", methods.get("grad_cam"))


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_maps(tmp_path):
    spec = small(methods=("saliency", "occlusion", "cam"), timing_variants=("fp32", "compile"))
    rows = run_benchmark(spec, tmp_path).records()
    compiled = rows[rows.protocol == "compile"].set_index(["method", "measure"])
    assert set(compiled.loc["cam"].status) == {"unsupported"}
    for method in ("saliency", "occlusion"):
        assert set(compiled.loc[method].status) == {"ok"}, compiled.loc[method].detail.iloc[0]
        assert 0 <= compiled.loc[(method, "logit_deviation"), "value"] < 1e-4


def test_the_child_uses_the_settings_it_is_given(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(timed_process, "tune", lambda tuning: seen.update(tuning=tuning))
    monkeypatch.setattr(timed_process.torch, "set_num_threads", lambda threads: seen.update(threads=threads))
    monkeypatch.setattr(timed_process.torch, "set_float32_matmul_precision", lambda name: seen.update(matmul=name))
    monkeypatch.setattr(timed_process, "load_model", lambda name, device: ac.load_model(name))
    monkeypatch.setattr(timed_process.os, "dup2", lambda *files: None)
    weights = ac.load_model(CNN).weights_hash
    asked = request("cam", weights=weights, threads=3, matmul="high", tuning=vars(Tuning(layout="channels_last")))
    (tmp_path / "request.json").write_text(json.dumps(vars(asked)))
    np.save(tmp_path / "images.npy", torch.rand(1, 3, 64, 64).numpy())
    timed_process.main(tmp_path)
    assert seen == {"tuning": Tuning(layout="channels_last"), "threads": 3, "matmul": "high"}
    assert set(json.loads((tmp_path / "results.json").read_text())["measured"]) == {PLAIN, "cam"}


def test_the_caption_of_a_run_that_scored_nothing_claims_no_images(tmp_path, child):
    child("pass")
    run_benchmark(small(limit=5), tmp_path)
    assert "First images of 'shapes', timed and not scored, target argmax" in table(tmp_path, "md")


def test_a_model_that_cannot_be_run_at_the_timed_batch_is_recorded_and_the_others_are_timed(tmp_path, monkeypatch):
    from attncompare.benchmark.timing import timed

    whole = timed._scene

    def too_large(spec, model, sample, cells):
        if model.name == "demo/cnn":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return whole(spec, model, sample, cells)

    monkeypatch.setattr(timed, "_scene", too_large)
    spec = BenchmarkSpec(
        models=("demo/cnn", "demo/se_cnn"), methods=("activation",), timing_only=True, repeats=3, timing_seconds=0.0,
        timing_batch=4,
    )  # fmt: skip
    records = run_benchmark(spec, tmp_path).records()
    assert records.groupby("model").status.agg(set).to_dict() == {"demo/cnn": {"failed"}, "demo/se_cnn": {"ok"}}
    assert set(records[records.model == "demo/cnn"].detail) == {
        "a batch of 4 cannot be run: "
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes (RuntimeError)"
    }
