"""What a run must never do: show one image's map on another, mix two specs, or freeze an accident."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import attncompare as ac
from attncompare.benchmark import chunk as chunk_module
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.data.images import read_image
from attncompare.errors import SpecError
from attncompare.reporting.gallery import Gallery


def small(**changes):
    values = {"models": ("demo/cnn",), "methods": ("cam",), "limit": 2, "timing": False, "protocol": "rise-fast"}
    return BenchmarkSpec(**(values | changes))


def test_a_map_is_shown_on_the_picture_it_was_made_for(tmp_path):
    for number in (1, 2, 1):
        (tmp_path / str(number)).mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / str(number) / "same.png")
        spec = small(data=(str(tmp_path / str(number) / "same.png"),), metrics=(), save_maps=True, limit=None)
        run_benchmark(spec, tmp_path / "run")
        run = Gallery.open(tmp_path / "run")
        assert run.images == ["same.png"]
        np.testing.assert_array_equal(run.picture("demo/cnn", "same.png"), read_image(spec.data[0]))


def test_a_run_folder_shows_the_cells_of_its_own_spec_only(tmp_path):
    run_benchmark(small(methods=("occlusion",), options={"occlusion": {"window": 0.5}}), tmp_path)
    again = run_benchmark(small(methods=("occlusion",), options={"occlusion": {"window": 0.25}}), tmp_path)
    rows = again.summary()
    assert again.computed == 1 and set(rows.n) == {2}


def test_an_interrupted_run_shows_what_it_finished_and_no_more(tmp_path, monkeypatch):
    run_benchmark(small(methods=("saliency",)), tmp_path)
    calls = []
    plain = chunk_module.score_maps

    def stop_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(chunk_module, "score_maps", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(small(chunk_size=1), tmp_path)
    assert set(Gallery.open(tmp_path).records.method) == {"cam"}
    monkeypatch.undo()
    finished = run_benchmark(small(chunk_size=1), tmp_path)
    assert (finished.computed, finished.reused) == (1, 1)


def test_an_accident_is_tried_again_and_a_verdict_is_not(tmp_path, monkeypatch):
    def out_of_memory(*arguments, **options):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(chunk_module, "score_maps", out_of_memory)
    assert run_benchmark(small(), tmp_path).failed == 4
    monkeypatch.undo()
    again = run_benchmark(small(), tmp_path)
    assert (again.computed, again.failed) == (1, 0)
    assert run_benchmark(small(), tmp_path).computed == 0


def test_labels_must_be_those_of_the_model(tmp_path):
    with pytest.raises(SpecError, match="not those of the data 'shapes'"):
        run_benchmark(small(models=("torchvision/resnet18@random",), target="label"), tmp_path)
    assert not (tmp_path / "run.json").exists()
    labeled = run_benchmark(small(target="label"), tmp_path).records()
    from attncompare.data.shapes import render_shape

    by_image = labeled[labeled.measure == "target_score"].set_index("image").target
    assert list(by_image) == [render_shape(i).label for i in range(2)]


def test_damaged_maps_are_made_again(tmp_path):
    first = run_benchmark(small(save_maps=True), tmp_path)
    path = next((tmp_path / "maps").glob("*.npz"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert (run_benchmark(small(save_maps=True), tmp_path).computed, first.computed) == (1, 1)
    assert Gallery.open(tmp_path).map("demo/cnn", "cam", "shapes-test-00000").shape == (8, 8)


def test_the_seed_of_a_run_reaches_the_random_control(tmp_path):
    maps = []
    for seed in (0, 1):
        run_benchmark(small(methods=("random_map",), seed=seed, save_maps=True), tmp_path / str(seed))
        maps.append(Gallery.open(tmp_path / str(seed)).map("demo/cnn", "random_map", "shapes-test-00000"))
    assert np.abs(maps[0] - maps[1]).max() > 0.1


def test_keys_of_single_scores_tell_targets_and_protocols_apart():
    model = ac.load_model("demo/cnn@random")
    images = torch.rand(1, 3, 64, 64)
    keys = set()
    for target in (0, 1):
        shown = ac.make_explainer(model, "cam").explain(images, target)
        keys |= {ac.score(model, images, shown, protocol=name)[0].key for name in ("rise", "grid14")}
    assert len(keys) == 4


@pytest.mark.parametrize(("pool", "expected"), [("avg", tuple(range(17))), ("map", 0)])
def test_a_pool_over_all_tokens_is_read_as_such(pool, expected):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, global_pool=pool,
            pool_include_prefix=True,
        )  # fmt: skip
    model = ac.wrap_model(module.eval(), size=(32, 32))
    assert model.attention_tokens.class_token == expected
    assert model.attention_tokens.prefix == (
        1 if pool == "avg" else 2
    )  # the pool's own query comes before the class token
    assert model.structure.pooling_blocks == (() if pool == "avg" else ("attn_pool",))


@pytest.mark.parametrize(("target", "meant"), [(3, {3}), ("class:", {1})])
def test_a_run_may_explain_one_class_of_all_images(tmp_path, target, meant):
    names = ac.load_model("demo/cnn").class_names
    target = f"class:{names[1]}" if isinstance(target, str) else target
    records = run_benchmark(small(target=target), tmp_path).records()
    assert set(records.target) == meant


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (999, "out of range"),
        ("class:zebra", "no class named"),
        ("embedding", "has a classifier"),
        ("text:x", "no text"),
    ],
)
def test_a_target_that_a_model_lacks_stops_the_run_before_it_starts(tmp_path, target, reason):
    with pytest.raises(SpecError, match=reason):
        run_benchmark(small(target=target), tmp_path / "run")
    assert not (tmp_path / "run" / "records").exists()
