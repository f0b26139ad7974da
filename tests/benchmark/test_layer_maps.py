"""What is kept of the inside of a model: heads of every block, the strongest channels of every stage."""

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.benchmark import layer_maps
from attncompare.benchmark.layer_maps import CHANNELS, LayerMaps, record_layers
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.data.datasets import open_dataset
from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import CaptureError, ResultFormatError
from attncompare.storage.folder import npz_of

SPEC = BenchmarkSpec(
    models=("demo/cnn", "demo/vit"), methods=("cam", "center_map"), metrics=(), limit=3, chunk_size=2, timing=False,
    save_maps=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_benchmark(SPEC, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def kept(run):
    return LayerMaps.open(run.folder, run.records().key.unique())


def seen_by(model, image):
    return to_tensor(fit_image(open_dataset("shapes", 3).load(image).image, model.source.preprocessing))[None]


def test_heads_are_the_class_rows_of_the_attention(run, kept):
    model = ac.load_model("demo/vit")
    for image in open_dataset("shapes", 3).names:
        layers = kept.of("demo/vit", image)
        whole = model.module.blocks[0].attn  # the first block derived again from its own weights
        tokens = model.module._pos_embed(model.module.patch_embed((seen_by(model, image) - mean(model)) / std(model)))
        x = model.module.blocks[0].norm1(model.module.norm_pre(tokens))
        q, k, _ = whole.qkv(x).reshape(1, 65, 3, whole.num_heads, -1).permute(2, 0, 3, 1, 4)
        expected = (q @ k.transpose(-2, -1) * whole.scale).softmax(-1)[0, :, 0, 1:].reshape(-1, 8, 8)
        assert (layers[0].layer, layers[0].kind) == ("blocks.0.attn", "head")
        np.testing.assert_allclose(layers[0].maps, expected.detach(), atol=1e-6)
        assert [one.layer for one in layers] == [f"blocks.{i}.attn" for i in range(6)]
        assert all(one.index.tolist() == list(range(whole.num_heads)) for one in layers)


def mean(model):
    return torch.tensor(model.mean).reshape(1, -1, 1, 1)


def std(model):
    return torch.tensor(model.std).reshape(1, -1, 1, 1)


def test_channels_are_those_with_the_largest_mean_activation(run, kept):
    model = ac.load_model("demo/cnn")
    seen = {}
    handles = [
        model.module.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
        for path in model.structure.stages
    ]
    image = open_dataset("shapes", 3).names[2]
    with torch.no_grad():
        model.forward(seen_by(model, image))
    for handle in handles:
        handle.remove()
    layers = kept.of("demo/cnn", image)
    assert [one.layer for one in layers] == list(model.structure.stages)
    for one in layers:
        features = seen[one.layer][0]
        order = sorted(range(len(features)), key=lambda c: -float(features[c].mean()))[:CHANNELS]
        assert one.kind == "channel" and one.index.tolist() == order
        np.testing.assert_allclose(one.maps, features[order], atol=1e-5)
        np.testing.assert_allclose(one.mean, features[order].mean(dim=(1, 2)), atol=1e-5)


def test_every_image_of_every_chunk_is_kept_once(run, kept):
    assert len(list((run.folder / "layers").glob("*.npz"))) == 2 * 2
    for image in open_dataset("shapes", 3).names:
        assert kept.of("demo/cnn", image) and kept.of("demo/vit", image)
    assert kept.of("demo/cnn", "another") == [] and kept.refused("demo/cnn") == ""


def test_a_second_run_records_nothing_and_a_damaged_file_is_made_again(run, monkeypatch):
    plain, calls = layer_maps.record_layers, []
    monkeypatch.setattr(layer_maps, "record_layers", lambda *given: calls.append(1) or plain(*given))
    run_benchmark(SPEC, run.folder)
    assert calls == []
    damaged = sorted((run.folder / "layers").glob("*.npz"))[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(ResultFormatError, match="run the benchmark again"):
        LayerMaps.open(run.folder, run.records().key.unique())
    run_benchmark(SPEC, run.folder)
    assert calls == [1] and damaged.read_bytes() == content


def test_a_model_that_cannot_be_recorded_keeps_the_reason(tmp_path, monkeypatch):
    def refuse(*given):
        raise CaptureError("no such luck")

    monkeypatch.setattr(layer_maps, "record_layers", refuse)
    run = run_benchmark(SPEC, tmp_path)
    assert run.failed == 0 and (run.records().status == "ok").any()
    assert LayerMaps.open(tmp_path, run.records().key.unique()).refused("demo/vit") == "no such luck"
    monkeypatch.undo()
    run_benchmark(SPEC, tmp_path)  # a refusal is for good, an accident is not
    assert LayerMaps.open(tmp_path, run.records().key.unique()).refused("demo/vit")
    monkeypatch.setattr(layer_maps, "record_layers", lambda *given: 1 / 0)
    for path in (tmp_path / "layers").glob("*.npz"):
        path.unlink()
    run_benchmark(SPEC, tmp_path)
    monkeypatch.undo()
    run_benchmark(SPEC, tmp_path)
    assert LayerMaps.open(tmp_path, run.records().key.unique()).refused("demo/vit") == ""


def test_a_reason_that_says_no_more_is_tried_again(tmp_path):
    """As in a folder of an earlier version."""
    archive = layer_maps.LayerArchive(tmp_path)
    names = {"images": np.array([], dtype=np.str_), "layers": np.empty((0, 2), dtype=np.str_)}
    for reason in ("", "no such luck"):
        archive.files.write("key", npz_of({"who": np.array(["demo/vit", reason]), **names}))
        assert archive.holds("key") == (not reason)


def test_nothing_is_kept_unless_maps_are(tmp_path):
    run_benchmark(SPEC.model_copy(update={"save_maps": False}), tmp_path)
    assert not (tmp_path / "layers").exists()


def test_every_tiny_model_has_layers_that_lie_on_the_image(each_tiny, pictures):
    images = pictures(each_tiny)
    for layers in record_layers(each_tiny, images, batch_size=1):
        assert layers
        for one in layers:
            assert one.maps.shape[0] == len(one.index) == len(one.mean) and np.isfinite(one.maps).all()
            h, w = one.maps.shape[1:]
            assert abs(h * images.shape[3] - w * images.shape[2]) < max(images.shape[2:])
