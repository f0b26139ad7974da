"""What holds of every signal, and the page that adds one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
block = model.model.blocks[-1].attn
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
print("both are right")
"""


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
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = ADDED.replace("TESTS", repr(str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "both are right\n", done.stderr
