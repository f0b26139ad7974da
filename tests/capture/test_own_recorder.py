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


def sees(page, report):
    """A recorder that reports by a function of the weights (B,heads,N,N) and the listener."""

    class Sees(ac.AttentionCalls):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            weights = super().__torch_function__(func, types, args, kwargs)
            if func is not torch.Tensor.softmax or weights.ndim != 3:
                return weights
            return report(weights.unflatten(0, (-1, page["HEADS"])), self.listener).flatten(0, 1)

    return Sees


def by_heads_first(weights, listener):
    """Takes (B * heads,N,N) for heads first: right for one image, or one head."""
    folded = weights.flatten(0, 1)
    apart = folded.unflatten(0, (weights.shape[1], weights.shape[0])).transpose(0, 1)
    return listener.softmax(apart).transpose(0, 1).flatten(0, 1).unflatten(0, weights.shape[:2])


def dropping(weights, listener):
    listener.softmax(weights)
    return weights


WRONG = {
    "images mixed with heads": (by_heads_first, "mixes images or heads"),
    "keys mirrored": (lambda weights, listener: listener.softmax(weights.flip(-1)).flip(-1), "in their order"),
    "queries mirrored": (lambda weights, listener: listener.softmax(weights.flip(-2)).flip(-2), "in their order"),
    "dropped": (dropping, "does not go on with"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_recorder_that_is_wrong_is_refused(page, wrong):
    report, reason = WRONG[wrong]
    with pytest.raises(UnsupportedModelError, match=f"of blocks.0 the recorder .* {reason}"):
        ac.wrap_model(page["Network"](), size=(32, 32), attention=sees(page, report))


def test_a_recorder_that_is_wrong_in_a_later_block_is_refused(page):
    def late(weights, listener):
        return dropping(weights, listener) if weights.requires_grad or late.count else listener.softmax(weights)

    late.count = 0
    network = page["Network"]()
    network.blocks[1].register_forward_pre_hook(lambda *given: setattr(late, "count", 1))
    network.blocks[0].register_forward_pre_hook(lambda *given: setattr(late, "count", 0))
    with pytest.raises(UnsupportedModelError, match=r"of blocks.1 the recorder .* does not go on with"):
        ac.wrap_model(network, size=(32, 32), attention=sees(page, late))


def test_a_right_recorder_is_taken_though_a_norm_undoes_a_change_of_scale(page):
    class Normed(page["FoldedAttention"]):
        def forward(self, x):
            return F.layer_norm(super().forward(x), x.shape[-1:], eps=1e-12)

    network = page["Network"]()
    for block in network.blocks:
        block.__class__ = Normed
        torch.nn.init.zeros_(block.project.bias)
    model = ac.wrap_model(network, size=(32, 32), attention=page["SeesFoldedHeads"])
    assert len(model.structure.attention_blocks) == 2


def test_a_block_that_reports_no_attention_is_named(page):
    with pytest.raises(
        UnsupportedModelError, match=r"of patches the recorder given as attention= reports no attention"
    ):
        ac.wrap_model(
            page["Network"](),
            size=(32, 32),
            attention=page["SeesFoldedHeads"],
            attention_blocks=("patches", "blocks.1"),
        )


def test_a_recorder_that_reports_nothing_is_named(page):
    model = ac.wrap_model(page["Network"](), size=(32, 32), attention=sees(page, lambda weights, listener: weights))
    with pytest.raises(UnsupportedMethodError, match="the recorder given as attention= reports no attention"):
        ac.explain_together(model, ["attention_rollout"], IMAGES)


def test_what_changes_after_the_model_is_wrapped_is_refused_by_the_call(page):
    class Later(page["SeesFoldedHeads"]):
        doubled = 1

        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = super().__torch_function__(func, types, args, kwargs)
            return self.doubled * result if func is torch.Tensor.softmax else result

    model = ac.wrap_model(page["Network"](), size=(32, 32), attention=Later)
    Later.doubled = 2
    with pytest.raises(CaptureError, match="changes the logits"):
        ac.explain_together(model, ["attention_rollout"], IMAGES)


@pytest.mark.parametrize("given", ["eager", None, lambda listener: None, torch.nn.Softmax])
def test_what_is_no_recorder_is_refused(page, given):
    with pytest.raises(UnsupportedModelError, match="attention must be AttentionCalls or a subclass of it"):
        ac.wrap_model(page["Network"](), size=(32, 32), attention=given)
