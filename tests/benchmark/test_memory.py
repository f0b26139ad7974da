"""How memory is measured. What a method must not hold: earlier calls, (N, N) weights for one row, trunks below the hook."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import attncompare as ac
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.benchmark.timing import device as device_file
from attncompare.benchmark.timing.device import open_device, peak_of
from attncompare.benchmark.timing.latency import time_interleaved

CALLS, WARM_UP = 200, 5
SLACK = 16 * 2**20  # bytes by which an allocator may wander; 200 graphs of these models are more


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def live_tensors():
    gc.collect()
    return sum(isinstance(found, Tensor) for found in gc.get_objects())


def resident_bytes():
    """The memory of this process; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def saved_bytes(run):
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    kept = []

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("cnn", ["grad_cam", "layer_cam", "saliency"]),
        ("vit", ["class_attention", "attention_rollout", "gradient_rollout", "grad_cam"]),
    ],
)
def test_nothing_is_left_behind_by_repeated_calls(tiny, pictures, name, methods):
    model = tiny(name)
    images = pictures(model, 1)
    for _ in range(WARM_UP):
        ac.explain_together(model, methods, images)
    before, resident = live_tensors(), resident_bytes()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())
    for _ in range(CALLS):
        ac.explain_together(model, methods, images)
    assert live_tensors() <= before
    assert resident_bytes() <= resident + SLACK
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules()) == hooks


@pytest.mark.parametrize("method", ["class_attention", "attention_rollout"])
def test_only_the_row_of_the_class_token_is_computed(build, method):
    timm_vit = type(build("vit"))
    size, tokens = 160, 401  # tokens * tokens is far more than any layer's output here
    module = timm_vit(img_size=size, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5).eval()
    model = ac.wrap_model(module, size=(size, size))
    images = torch.rand(1, 3, size, size)
    ac.explain_together(model, [method], images, 0)  # the check of the logits is over
    with LargestTensor() as seen:
        ac.explain_together(model, [method], images, 0)
    assert (seen.elements >= tokens * tokens) == (method == "attention_rollout")


@pytest.mark.parametrize("name", ["cnn", "vit", "swin"])
def test_the_graph_of_grad_cam_starts_at_the_tap(tiny, pictures, name):
    """The trunk keeps nothing: a backward pass to the images keeps several times what Grad-CAM keeps."""
    model = tiny(name)
    images = pictures(model)
    for method in ("grad_cam", "saliency"):
        ac.explain_together(model, [method], images, 0)
    whole = saved_bytes(lambda: ac.explain_together(model, ["saliency"], images, 0))
    head = saved_bytes(lambda: ac.explain_together(model, ["grad_cam"], images, 0))
    assert 0 < head < whole / 2


MANY = 64 * 2**20  # bytes; glibc maps blocks of this size and gives them back at once


PEAKS = f"""
import json, torch
from attncompare.benchmark.timing.device import open_device, peak_of

MANY, device = {MANY}, open_device(torch.device("cpu"))

def hold(*sizes):
    for size in sizes:
        torch.ones(size, dtype=torch.uint8)

hold(MANY)
kept = torch.ones(MANY, dtype=torch.uint8)  # what was there before is not counted
jobs = [lambda: hold(MANY), lambda: hold(MANY, 2 * MANY, MANY), lambda: None]
print(json.dumps([peak_of(job, device) for job in jobs]))
"""


def test_the_peak_of_a_job_is_what_it_held_at_most():
    """In a fresh process, as the package measures: this one may keep freed memory, which a test of tuning asked for."""
    if open_device(torch.device("cpu")).start_peak is None:
        pytest.skip("this system does not tell the peak of a process")
    said = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout
    one, largest, nothing = json.loads(said)
    # the kernel counts pages in batches of 64 per processor, so the last 256 KiB or so are not exact
    assert one == pytest.approx(MANY, rel=0.05)
    assert largest == pytest.approx(2 * MANY, rel=0.05)
    assert nothing < 0.05 * MANY


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(device_file, "CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    device = open_device(torch.device("cpu"))
    ran = []
    assert peak_of(lambda: ran.append(1), device) is None and ran == []
    first = device.now()
    assert device.synchronize() is None and device.now() >= first


@pytest.mark.gpu
def test_cuda_tells_its_peak_and_its_own_time():
    device = open_device(torch.device("cuda"))
    kept = torch.ones(MANY, dtype=torch.uint8, device="cuda")
    assert peak_of(lambda: torch.ones(2 * MANY, dtype=torch.uint8, device="cuda"), device) == 2 * MANY
    square = torch.rand(2048, 2048, device="cuda")
    found = time_interleaved({"matmul": lambda: square @ square}, device, repeats=5, seconds=0)["matmul"]
    assert len(found.device_seconds) == 5 and len(kept) == MANY
    assert all(0 < own <= wall for own, wall in zip(found.device_seconds, found.seconds, strict=True))


@pytest.mark.gpu
def test_a_run_on_cuda_has_device_times_and_peaks(tmp_path):
    spec = BenchmarkSpec(models=("demo/vit@random",), methods=("grad_cam", "saliency"), limit=1, device="cuda",
                         repeats=3, timing_seconds=0.0, timing_only=True, timing_variants=("fp32", "bf16"))  # fmt: skip
    rows = run_benchmark(spec, tmp_path).records()
    assert set(rows.status) == {"ok"}, rows.detail.iloc[0]
    assert {"latency_device_median", "peak_bytes"} <= set(rows.measure)
    assert (rows[rows.measure == "peak_bytes"]["value"] > 0).all()


def test_every_question_to_cuda_names_the_device_that_is_timed(monkeypatch):
    """Without a name torch answers for its current device, which is not the one of a model on cuda:1."""
    asked = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            asked.append(("record", stream))

    def answer(name):
        return lambda device=None: asked.append((name, device)) or 7

    for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, answer(name))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    second = torch.device("cuda:1")
    device = open_device(second)
    assert peak_of(device.mark, device) == 0
    assert len(asked) == 6 and {one for _, one in asked} == {second}
