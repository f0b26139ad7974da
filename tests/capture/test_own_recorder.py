"""A recorder of one's own: the page that adds one, and what is said of a recorder that is wrong."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import attncompare as ac
from attncompare.errors import CaptureError, UnsupportedMethodError, UnsupportedModelError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "attention.md"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SLOW = {"kernel_shap", "lime", "rise", "score_cam", "smooth_grad"}  # read no attention and no gradient of it


@pytest.fixture(scope="module")
def page():
    """What the page defines: the network, its recorder, the model and its maps."""
    defined = {}
    torch.manual_seed(0)
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(code, defined)
    return defined


@pytest.fixture(scope="module")
def unfolded(page):
    """The same network with its heads apart, which attncompare finds by itself."""

    class Attention(page["FoldedAttention"]):
        def forward(self, x):
            query, key, value = self.qkv(x).unflatten(-1, (3, page["HEADS"], -1)).permute(2, 0, 3, 1, 4)
            weights = F.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
            return self.project((weights @ value).transpose(1, 2).flatten(2))

    network = copy.deepcopy(page["model"].module)
    for block in network.blocks:
        block.__class__ = Attention
    return ac.wrap_model(network, size=(32, 32))


def test_the_page_runs_and_finds_all_of_the_attention(page, unfolded):
    assert page["maps"]["gradient_rollout"].values.shape == (2, 4, 4)
    assert page["model"].structure == unfolded.structure
    assert page["model"].missing == unfolded.missing


@pytest.mark.parametrize("method", sorted(set(ac.list_methods()) - SLOW))
def test_maps_are_those_of_the_same_network_with_its_heads_apart(page, unfolded, method):
    def explained(model):
        try:
            return ac.explain_together(model, [method], IMAGES)[method].values
        except UnsupportedMethodError as error:
            return str(error)

    found, expected = explained(page["model"]), explained(unfolded)
    if isinstance(expected, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_without_a_recorder_the_attention_is_refused_and_the_reason_says_what_to_do(page):
    network = page["Network"]()
    for block in network.blocks:
        block.num_heads = page["HEADS"]
    plain = ac.wrap_model(network, size=(32, 32))
    with pytest.raises(UnsupportedMethodError, match=r"wrap_model\(attention=") as refused:
        ac.explain_together(plain, ["attention_rollout"], IMAGES)
    assert "folds the heads into the batch" in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda weights, listener: listener.softmax(2 * weights) / 2, "miss 1 by 1"),
        (lambda weights, listener: listener.softmax(weights).flip(-1), "changes the logits"),
    ],
    ids=["not what runs", "not what the model goes on with"],
)
def test_a_recorder_that_is_wrong_is_refused(page, wrong, reason):
    class Wrong(ac.AttentionCalls):
        armed = False

        def __torch_function__(self, func, types, args=(), kwargs=None):
            weights = super().__torch_function__(func, types, args, kwargs)
            if func is not torch.Tensor.softmax or weights.ndim != 3:
                return weights
            apart = weights.unflatten(0, (-1, page["HEADS"]))
            return (wrong(apart, self.listener) if self.armed else self.listener.softmax(apart)).flatten(0, 1)

    model = ac.wrap_model(page["Network"](), size=(32, 32), attention=Wrong)
    Wrong.armed = True
    with pytest.raises(CaptureError, match=reason):
        ac.explain_together(model, ["attention_rollout"], IMAGES)


def test_what_is_no_recorder_is_refused(page):
    with pytest.raises(UnsupportedModelError, match="attention must be a recorder"):
        ac.wrap_model(page["Network"](), size=(32, 32), attention="eager")
