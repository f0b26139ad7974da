"""Memory runs out: injected where models forward, in the words of every allocator."""

import pytest
import torch

from attncompare.benchmark import session
from attncompare.benchmark.run import run_benchmark
from attncompare.models.adapter import ModelAdapter

LINUX = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"
)
OTHER = "[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."
ERRORS = (torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(LINUX), RuntimeError(OTHER))


@pytest.fixture
def small(spec):
    return spec.model_copy(update={"limit": 4, "chunk_size": 4, "methods": ("saliency",), "options": {}})


@pytest.fixture
def room_for(monkeypatch):
    """Let models run out of memory above a batch size, and note the sizes that were tried."""
    plain, forward, sizes, loading = session.load_model, ModelAdapter.forward, [], []

    def load(name, **options):
        loading.append(name)
        try:
            return plain(name, **options)
        finally:
            loading.clear()

    def narrow(most, error, only="demo/"):
        def enter(model, images):
            if not loading:
                sizes.append(len(images))
                if len(images) > most and model.name.startswith(only):
                    raise error
            return forward(model, images)

        monkeypatch.setattr(session, "load_model", load)
        monkeypatch.setattr(ModelAdapter, "forward", enter)
        return sizes

    return narrow


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {str(error)[-20:]}")
def test_the_batch_halves_down_to_one_and_nothing_is_lost(tmp_path, small, room_for, error, same_as):
    expected = run_benchmark(small, tmp_path / "undisturbed")
    sizes = room_for(1, error)
    run = run_benchmark(small, tmp_path / "run")
    assert {4, 2, 1} <= set(sizes)  # 8 are forwarded 4 at a time, unless an earlier test made torch keep memory
    assert run.failed == 0
    same_as(run, expected)


def test_where_not_even_one_fits_the_reason_is_recorded_and_the_run_goes_on(
    tmp_path, small, room_for, monkeypatch, same_as
):
    room_for(0, RuntimeError(LINUX), only="demo/cnn")
    records = run_benchmark(small, tmp_path / "run").records()
    assert set(records[records.model == "demo/vit"].status) == {"ok"}
    failed = records[records.model == "demo/cnn"]
    assert set(failed.status) == {"failed"} and set(failed.detail) == {f"{LINUX} (RuntimeError)"}
    assert set(failed.kind) == {"memory"} and failed.retry.all()
    assert set(failed.image) == {f"shapes-test-{i:05d}" for i in range(4)}
    assert set(failed.measure) == {
        "target_score",
        "deletion",
    }
    monkeypatch.undo()  # memory is there again: what failed by accident is tried again
    again = run_benchmark(small, tmp_path / "run")
    assert (again.computed, again.reused) == (1, 1)
    same_as(again, run_benchmark(small, tmp_path / "undisturbed"))
