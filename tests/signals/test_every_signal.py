"""What holds of every signal, and the page that adds one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.capture.attention import AttentionRecorder
from attncompare.errors import CaptureError
from attncompare.registry import signals
from attncompare.signals._base import request

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "signal.md"
ADDED = """
import sys
import attncompare.methods, attncompare.signals
attncompare.signals.__path__.append("signals")
attncompare.methods.__path__.append("methods")
sys.path.append(TESTS)
import torch
import attncompare as ac
from conftest import wrap_tiny

assert "norm_weighted_attention" in ac.list_methods()
model = wrap_tiny("vit_registers")
images = torch.rand(2, 3, *model.size)
rows = []
block = model.module.blocks[-1].attn
block.qkv.register_forward_hook(lambda module, args, output: rows.append(output.detach().double()))
shown = ac.explain_together(model, ["norm_weighted_attention", "grad_cam"], images)["norm_weighted_attention"]
query, key, value = rows[0].reshape(2, -1, 3, block.num_heads, block.head_dim).permute(2, 0, 3, 1, 4)
weights = (query[:, :, :1] @ key.transpose(-2, -1) / block.head_dim**0.5).softmax(-1)[:, :, 0]
expected = model.tokens.to_grid((weights * value.norm(dim=-1)).mean(1))
torch.testing.assert_close(shown.values.double(), expected, atol=1e-6, rtol=1e-5)
assert shown.passes_forward == 1
try:
    ac.explain_together(wrap_tiny("cnn"), ["norm_weighted_attention"], torch.rand(1, 3, 32, 32))
except ac.errors.UnsupportedMethodError as error:
    assert str(error).startswith("norm_weighted_attention needs attention_values: it has no softmax attention"), error
else:
    raise AssertionError("a CNN has no attention values")
for name, fused, reason in (("vit_map_pool", True, "pooling query"), ("vit", False, "no fused attention kernel")):
    model = wrap_tiny(name)
    for block in model.module.blocks:
        block.attn.fused_attn = fused
    try:
        ac.explain_together(model, ["norm_weighted_attention"], torch.rand(1, 3, 32, 32))
    except ac.errors.UnsupportedMethodError as error:
        assert reason in str(error), error
    else:
        raise AssertionError(f"{name} shows no values")
print("both are right")
"""
DEFINED_AGAIN = """
import torch
import attncompare as ac
from attncompare.models.adapter import ModelAdapter

model, images = ac.load_model("demo/cnn"), torch.rand(1, 3, 64, 64)
for factor, reason in ((1.0, ""), (5.0, ""), (1.0, "it is not to be had")):
    @ac.signal(cost="free")
    class Brightness(ac.Signal):
        def missing(self, model):
            return reason
        def read(self, of):
            return factor * of.images.mean(1)

    if factor == 1.0 and not reason:
        @ac.method(reference="none", class_sensitive=False)
        def brightness(brightness):
            return brightness
    try:
        shown = ac.explain_together(model, ["brightness"], images, torch.tensor([0]))["brightness"]
    except ac.errors.UnsupportedMethodError as error:
        assert reason and reason in str(error)
    else:
        assert not reason
        torch.testing.assert_close(shown.values, factor * images.mean(1))
print("the last definition counts")
"""


def said_by(script, folder):
    """What a process prints that runs a script; its errors where it fails."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    return done.stdout or done.stderr


@pytest.mark.parametrize("name", signals.names())
def test_a_signal_says_what_it_is(name):
    found = signals.get(name)
    assert found.name == name
    assert len(found.__doc__) > 10
    assert found.cost in ("free", "shared", "extra")
    assert request(name) == found()
    assert hash(request(name)) == hash(found())
    assert all(option.meaning for option in found.options)


@pytest.mark.parametrize("name", [name for name in signals.names() if signals.get(name).backward])
def test_a_gradient_shares_the_options_of_what_it_is_taken_of(name):
    source = name.removesuffix("_gradients")
    of = source if source in signals.names() else f"{source}s"
    assert signals.get(name).options == signals.get(of).options


def test_the_page_adds_a_signal_and_its_method_in_two_files(tmp_path):
    signal, method = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for folder, name, code in (("signals", "attention_values", signal), ("methods", "norm_weighted_attention", method)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(code)
    script = ADDED.replace("TESTS", repr(str(ROOT / "tests")))
    assert said_by(script, tmp_path) == "both are right\n"


def test_the_last_definition_of_a_signal_counts(tmp_path):
    assert said_by(DEFINED_AGAIN, tmp_path) == "the last definition counts\n"


def test_a_listener_is_told_of_a_block_that_runs_twice(tiny):
    recorder, heard = AttentionRecorder(tiny("vit")), []
    recorder.listeners.append(lambda *call: heard.append(call))
    recorder.running.append(0)
    tokens = torch.rand(1, 2, 17, 16)
    recorder.kernel(tokens, tokens, tokens)
    with pytest.raises(CaptureError, match="attention block 0 ran twice"):
        recorder.kernel(tokens, tokens, tokens)
    assert len(heard) == 1


def test_a_layer_that_does_not_run_is_refused_by_methods_of_either_kind():
    class WithSpare(nn.Sequential):
        def forward(self, images):
            return self[3](self[2](self[1](self[0](images))))

    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Conv2d(3, 4, 3)
    model = ac.wrap_model(WithSpare(*layers), size=(16, 16))
    for method in ("grad_cam", "finer_cam"):
        with pytest.raises(CaptureError, match="layer '4' did not run in the forward pass"):
            ac.make_explainer(model, method, layer="4").explain(torch.rand(2, 3, 16, 16))
