import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.benchmark.openvino import openvino_forward, openvino_library
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.errors import SpecError, UnsupportedModelError
from attncompare.models import same_outputs
from attncompare.reporting.tables import table

# not importorskip, which would import it with the telemetry that openvino_library leaves out
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
SPEC = BenchmarkSpec(
    models=("demo/cnn", "demo/vit"), methods=("saliency",), metrics=("deletion", "insertion", "average_drop"), limit=3,
    protocol="grid14", timing=False, backend="openvino",
)  # fmt: skip


@needs_openvino
def test_scores_are_those_of_torch_and_say_what_made_them(tmp_path):
    plain = run_benchmark(SPEC.model_copy(update={"backend": "torch"}), tmp_path / "torch")
    run = run_benchmark(SPEC, tmp_path / "openvino")
    both = plain.records().merge(run.records(), on=["model", "method", "image", "measure"], suffixes=("", "_openvino"))
    assert len(both) == 2 * 3 * 4 and set(both.status) | set(both.status_openvino) == {"ok"}
    assert not set(both.key) & set(both.key_openvino)
    both["apart"] = (both.value - both.value_openvino).abs()
    largest = both.groupby("measure").apart.max()
    assert largest["target_score"] == 0  # the clean image and the target stay torch's
    assert 0 < largest["deletion"] < 1e-5 and 0 < largest["insertion"] < 1e-5  # 0 would be torch's own
    for _, row in both[both.measure.isin(["deletion", "insertion"])].iterrows():
        assert row.curve == pytest.approx(row.curve_openvino, abs=1e-5)
    manifest = run.manifest()
    assert all(0 < value < 1e-5 for value in manifest["deviation"].values()) and len(manifest["deviation"]) == 2
    assert set(plain.manifest()["deviation"].values()) == {0}
    assert set(both.scored_by_openvino) == {"openvino"}
    assert set(zip(both.model, both.scored_by, strict=True)) == {
        ("demo/cnn", "torch channels_last"), ("demo/vit", "torch contiguous"),
    }  # fmt: skip
    assert manifest["environment"]["versions"]["openvino"][0].isdecimal() and manifest["spec"]["backend"] == "openvino"
    assert "scored by openvino" in table(run.folder, "md") and "openvino" not in table(plain.folder, "md")


@needs_openvino
@pytest.mark.parametrize("name", ["demo/cnn", "demo/vit"])
def test_the_converted_pass_takes_any_batch_in_any_layout_and_is_made_once(name):
    model = ac.load_model(name)
    model.module.train()
    forward, images = openvino_forward(model), torch.rand(5, 3, *model.size)
    assert forward is openvino_forward(model) and model.module.training
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    model.module.eval()
    with torch.no_grad():
        exact = model.forward(images)
    assert forward(images).softmax(1) == pytest.approx(exact.softmax(1), abs=1e-5)
    first = forward(images[:1])
    assert forward(images[1:4].contiguous(memory_format=torch.channels_last)).shape == (3, exact.shape[1])
    assert first.softmax(1) == pytest.approx(exact[:1].softmax(1), abs=1e-5)  # not written over by the next pass


@needs_openvino
def test_a_deviation_beyond_the_limit_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(same_outputs, "TOLERANCE", -1.0)
    with pytest.raises(SpecError, match=r"backend openvino changes scores by .* leave it off"):
        run_benchmark(SPEC, tmp_path)


class Branching(nn.Module):
    """Takes another way for dark images, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, images):
        features = self.convolution(images)
        features = features if images.mean() > 0 else -features
        return self.linear(features.relu().mean(dim=(2, 3)))


@needs_openvino
def test_a_model_that_cannot_be_converted_is_refused():
    model = ac.wrap_model(Branching(), size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, name="branching")
    with pytest.raises(
        UnsupportedModelError, match=r"branching cannot be converted for backend openvino: .*; use backend"
    ):
        openvino_forward(model)


@needs_openvino
def test_nothing_is_reported_to_anyone(tmp_path):
    code = "import sys; from attncompare.benchmark.openvino import openvino_library; assert openvino_library().Core();"
    code += "import openvino; assert 'openvino_telemetry' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    )
    assert not list(tmp_path.iterdir())  # where the telemetry keeps the name it gives a user


def test_a_missing_package_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SpecError, match=r"needs openvino; pip install 'attncompare\[openvino\]'"):
        openvino_library()
    with pytest.raises(SpecError, match="needs openvino"):
        run_benchmark(SPEC, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_devices_and_dtypes_and_names_are_refused():
    for wrong in ({"device": "cuda"}, {"dtype": "bf16"}):
        with pytest.raises(
            SpecError, match=r"backend openvino scores on device cpu in dtype float32, .* use backend torch"
        ):
            BenchmarkSpec(**SPEC.model_dump() | wrong)
    with pytest.raises(SpecError, match="'torch' or 'openvino'"):
        BenchmarkSpec(**SPEC.model_dump() | {"backend": "onnx"})
    model = ac.load_model("demo/cnn")
    model.module.to("meta")
    with pytest.raises(SpecError, match="runs on the CPU and demo/cnn is on meta; use backend torch"):
        openvino_forward(model)
