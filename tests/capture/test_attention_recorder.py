"""What the recorder sees, against attention that is computed without it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.errors import CaptureError, UnsupportedModelError
from attncompare.inspection.attention_calls import AttentionCalls, attention_rows, explicit_attention
from attncompare.inspection.layout import TokenLayout
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import request
from attncompare.state import disable_mha_fastpath

KERNEL = F.scaled_dot_product_attention
ATTENTION, GRADIENTS = request("attention"), request("attention_gradients")
CLASS_ROWS = request("class_attention")
TRANSFORMERS = [
    "vit",
    "vit_mean",
    "vit_registers",
    "vit_distilled",
    "vit_oblong",
    "vit_torchvision",
    "embedding_vit",
    "hf_vit",
    "hf_deit",
    "hf_deit_teacher",
    "hf_dinov2_registers",
]


def fused(how):
    return request("fused_attention", head_fusion=how)


def recorded(model, images, need=ATTENTION, target=None):
    return record(model, images, [need], target).signals[need]


def inputs_of(model, paths, images):
    """The first input of each named module in a plain pass."""
    kept = []
    handles = [
        model.module.get_submodule(path).register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
        for path in paths
    ]
    with torch.no_grad():
        model.forward(images)
    for handle in handles:
        handle.remove()
    return kept


def by_hand(block, tokens):
    """softmax(q k / sqrt(d)) of a timm block from its weights, image by image and head by head, in float64."""
    weight, bias = block.qkv.weight.detach().double(), block.qkv.bias.detach().double()
    width, heads = tokens.shape[-1], block.num_heads
    size = width // heads
    maps = []
    for image in tokens.double():
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            query = image @ weight[:width][own].T + bias[:width][own]
            key = image @ weight[width : 2 * width][own].T + bias[width : 2 * width][own]
            scores = (query @ key.T / size**0.5).exp()
            maps.append(scores / scores.sum(dim=1, keepdim=True))
    return torch.stack(maps).reshape(len(tokens), heads, *maps[0].shape)


@pytest.mark.parametrize("name", ["vit", "vit_mean", "vit_registers", "vit_distilled", "vit_oblong"])
def test_timm_attention_is_the_softmax_of_its_own_weights(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    blocks = model.structure.attention_blocks
    assert len(blocks) == 3
    for path, tokens, actual in zip(blocks, inputs_of(model, blocks, images), recorded(model, images), strict=True):
        expected = by_hand(model.module.get_submodule(path), tokens)
        torch.testing.assert_close(actual.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["hf_vit", "hf_deit", "hf_deit_teacher", "hf_dinov2_registers"])
def test_transformers_attention_is_what_its_eager_attention_returns(fresh, pictures, name):
    model = fresh(name)
    images = pictures(model)
    actual = recorded(model, images)
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.module((images - 0.5) / 0.5, output_attentions=True).attentions
    assert len(expected) == len(actual) == 3
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_torchvision_attention_is_what_its_layer_returns_when_asked(tiny, pictures):
    model = tiny("vit_torchvision")
    images = pictures(model)
    paths = model.structure.attention_blocks
    actual = recorded(model, images)
    assert len(actual) == 3
    for path, tokens, found in zip(paths, inputs_of(model, paths, images), actual, strict=True):
        layer = model.module.get_submodule(path)
        with torch.no_grad():
            _, expected = layer(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_rows_sum_to_one_and_fit_the_layout(tiny, pictures, name):
    model = tiny(name)
    for block in recorded(model, pictures(model)):
        assert block.shape == (2, 2, model.tokens.length, model.tokens.length)
        assert (block >= 0).all()
        torch.testing.assert_close(block.sum(dim=-1), torch.ones(block.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("need", [ATTENTION, GRADIENTS, CLASS_ROWS, fused("mean"), fused("max")], ids=lambda n: n.name)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_recording_does_not_change_the_logits(tiny, pictures, name, need):
    model = tiny(name)
    images = pictures(model)
    with torch.no_grad():
        plain = model.forward(images)
    seen = record(model, images, [need]).logits
    torch.testing.assert_close(seen, plain, atol=1e-5 * max(1.0, float(plain.abs().max())), rtol=0)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_class_rows_beside_the_fused_kernel_are_rows_of_the_full_attention(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    rows = {
        int: lambda c: [c],
        tuple: list,
        type(None): lambda c: list(range(model.tokens.prefix, model.tokens.length)),
    }
    read = rows[type(model.tokens.class_token)](model.tokens.class_token)
    full, alone = recorded(model, images), recorded(model, images, CLASS_ROWS)
    together = record(model, images, [ATTENTION, CLASS_ROWS]).signals[CLASS_ROWS]
    for block, one, other in zip(full, alone, together, strict=True):
        expected = sum(block[:, :, row] for row in read) / len(read)
        torch.testing.assert_close(one, expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(other, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("how", ["mean", "max", "min"])
def test_fused_heads_are_the_full_heads_fused(tiny, pictures, how):
    model = tiny("vit")
    images = pictures(model)
    for block, actual in zip(recorded(model, images), recorded(model, images, fused(how)), strict=True):
        heads = [block[:, head] for head in range(block.shape[1])]
        expected = {"mean": sum(heads) / 2, "max": torch.maximum(*heads), "min": torch.minimum(*heads)}[how]
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


class UnfusedViT:
    """A tiny timm ViT through its own unfused attention, in float64: another implementation of the same model."""

    def __init__(self, build):
        self.module = build("vit").double()
        for block in self.module.blocks:
            block.attn.fused_attn = False
        self.kept = []
        self.nudge = {}  # (block, place) -> value added to the attention there
        for number, block in enumerate(self.module.blocks):
            block.attn.attn_drop.register_forward_hook(lambda m, args, out, number=number: self._see(number, out))

    def _see(self, number, attention):
        for (block, place), value in self.nudge.items():
            if block == number:
                attention = attention.index_put(
                    tuple(torch.tensor([i]) for i in place), torch.tensor([value]).double(), True
                )
        self.kept.append(attention)
        return attention

    def score(self, images, target):
        self.kept.clear()
        return self.module((images - 0.5) / 0.5)[:, target]


def test_attention_gradients_are_those_of_an_unfused_implementation(build, pictures):
    slow = UnfusedViT(build)
    model = ac.wrap_model(build("vit"), size=(32, 32))
    images = pictures(model)
    expected = torch.autograd.grad(slow.score(images.double(), 3).sum(), slow.kept)
    actual = recorded(model, images, GRADIENTS, target=3)
    for one, other in zip(actual, expected, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one.double(), other, atol=1e-5 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("place", [(0, 1, 0, 5), (1, 0, 0, 0), (1, 1, 7, 3)])
def test_attention_gradients_of_every_block_are_finite_differences(build, pictures, place):
    slow = UnfusedViT(build)
    model = ac.wrap_model(build("vit"), size=(32, 32))
    images = pictures(model)
    gradients = recorded(model, images, GRADIENTS, target=1)
    step = 1e-4
    for block in range(3):
        scores = []
        for value in (step, -step):
            slow.nudge = {(block, place): value}
            with torch.no_grad():
                scores.append(slow.score(images.double(), 1)[place[0]])
        expected = float(scores[0] - scores[1]) / (2 * step)
        scale = float(gradients[block].abs().max())
        assert float(gradients[block][place]) == pytest.approx(expected, abs=1e-4 * scale)


@pytest.mark.parametrize("name", ["vit", "vit_torchvision", "hf_vit"])
def test_gradients_do_not_depend_on_what_else_is_recorded(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    alone = recorded(model, images, GRADIENTS, target=2)
    others = [GRADIENTS, request("image_gradients"), request("feature_gradients"), fused("mean"), CLASS_ROWS]
    together = record(model, images, others, 2).signals[GRADIENTS]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(one.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["vit", "vit_torchvision", "hf_vit"])
def test_the_fused_kernel_and_the_fast_path_come_back(tiny, pictures, name):
    model = tiny(name)
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            recorded(model, pictures(model))
            assert torch.backends.mha.get_fastpath_enabled() is enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert F.scaled_dot_product_attention is KERNEL
    assert torch.nn.functional.scaled_dot_product_attention is KERNEL


def test_a_kernel_that_someone_else_swapped_in_comes_back(tiny, pictures, monkeypatch):
    def theirs(*args, **kwargs):
        return KERNEL(*args, **kwargs)

    model = tiny("vit_torchvision")
    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs)
    recorded(model, pictures(model))
    assert F.scaled_dot_product_attention is theirs


def queries(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks():
    lower = torch.randn(7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    allowed = lower > -0.5
    allowed.fill_diagonal_(True)
    return {
        "none": {},
        "boolean": {"attn_mask": allowed},
        "boolean per image": {"attn_mask": torch.stack([allowed, allowed.flip(0, 1)])[:, None]},
        "boolean for all queries": {"attn_mask": allowed[:1]},
        "float": {"attn_mask": lower},
        "float per head": {"attn_mask": torch.stack([lower, -lower, lower.T, lower + 1])[None]},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
        "everything": {"attn_mask": lower, "scale": 2.0},
    }


@pytest.mark.parametrize("kind", masks())
def test_explicit_attention_is_the_fused_kernel(kind):
    query, key, value = queries(0, 2, 4, 7, 8), queries(1, 2, 4, 7, 8), queries(2, 2, 4, 7, 8)
    output, probabilities = explicit_attention(query, key, value, **masks()[kind])
    torch.testing.assert_close(output, KERNEL(query, key, value, **masks()[kind]), atol=1e-12, rtol=0)
    torch.testing.assert_close(probabilities @ value, output, atol=1e-12, rtol=0)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(2, 4, 7).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("rows", [[0], [1, 4], list(range(7))], ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_attention_rows_are_the_mean_of_rows_of_explicit_attention(kind, rows, chunk):
    query, key = queries(0, 2, 4, 7, 8), queries(1, 2, 4, 7, 8)
    _, full = explicit_attention(query, key, key, **masks()[kind])
    actual = attention_rows(query, key, rows, chunk=chunk, **masks()[kind])
    torch.testing.assert_close(actual, full[:, :, rows].mean(dim=2).detach(), atol=1e-12, rtol=0)


def test_explicit_attention_shares_keys_between_heads_as_the_kernel_does():
    query, key, value = queries(0, 2, 4, 7, 8), queries(1, 2, 2, 7, 8), queries(2, 2, 2, 7, 8)
    output, _ = explicit_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(output, KERNEL(query, key, value, enable_gqa=True), atol=1e-12, rtol=0)


class TokenNet(nn.Module):
    """A ViT of one's own: patch convolution, class token and attention blocks that call the kernel with options."""

    def __init__(self, blocks=2, key_heads=4, **options):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList(OwnAttention(key_heads, options) for _ in range(blocks))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.head(self.norm(tokens)[:, 0])


class OwnAttention(nn.Module):
    def __init__(self, key_heads, options):
        super().__init__()
        self.query, self.both = nn.Linear(16, 16), nn.Linear(16, 2 * 4 * key_heads)
        self.key_heads, self.options = key_heads, options

    def forward(self, tokens):
        images, count, _ = tokens.shape
        query = self.query(tokens).reshape(images, count, 4, 4).transpose(1, 2)
        key, value = self.both(tokens).reshape(images, count, 2, self.key_heads, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, **self.options)
        return mixed.transpose(1, 2).reshape(images, count, 16)


def own_model(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TokenNet(**options)
    return ac.wrap_model(module.eval(), size=(32, 32), name="own")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 1.7},
        {"attn_mask": torch.ones(17, 17, dtype=torch.bool).tril(3)},
        {"attn_mask": torch.linspace(-1, 1, 17).expand(17, 17)},
        {"key_heads": 2, "enable_gqa": True},
        {"key_heads": 1, "enable_gqa": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_every_kind_of_kernel_call_is_recorded_alike(pictures, options):
    model = own_model(**options)
    images = pictures(model)
    assert model.tokens == TokenLayout(1, (4, 4), 0)
    full, rows = recorded(model, images), recorded(model, images, CLASS_ROWS)
    for block, class_row in zip(full, rows, strict=True):
        assert block.shape == (2, 4, 17, 17)
        torch.testing.assert_close(class_row, block[:, :, 0], atol=1e-6, rtol=1e-4)


def with_blocks(model: ModelAdapter, *blocks: str) -> ModelAdapter:
    return ModelAdapter(model.source, replace(model.structure, attention_blocks=blocks))


@pytest.mark.parametrize("need", [ATTENTION, GRADIENTS, CLASS_ROWS, fused("mean")], ids=lambda need: need.name)
def test_a_declared_block_that_never_attends_is_an_error_with_both_counts(tiny, pictures, need):
    model = with_blocks(tiny("vit"), *tiny("vit").structure.attention_blocks, "blocks.0.mlp")
    with pytest.raises(CaptureError, match=r"3 attention maps recorded .* 4 blocks declared"):
        recorded(model, pictures(model), need)


@pytest.mark.parametrize("name", ["vit", "vit_torchvision"])
def test_a_block_left_out_of_the_declaration_is_an_error(tiny, pictures, name):
    model = with_blocks(tiny(name), *tiny(name).structure.attention_blocks[:2])
    with pytest.raises(CaptureError):
        recorded(model, pictures(model), fused("mean"))


def test_a_module_that_holds_several_attentions_is_an_error(tiny, pictures):
    model = with_blocks(tiny("vit"), "blocks")
    with pytest.raises(CaptureError, match="ran twice"):
        recorded(model, pictures(model))
    assert F.scaled_dot_product_attention is KERNEL


@pytest.mark.parametrize("name", ["vit", "vit_torchvision"])
@pytest.mark.parametrize("need", [ATTENTION, fused("mean"), CLASS_ROWS], ids=lambda need: need.name)
def test_attention_of_another_length_than_the_layout_is_an_error(tiny, pictures, name, need):
    model = tiny(name)
    wrong = ModelAdapter(model.source, replace(model.structure, tokens=TokenLayout(2, (4, 4), 0)))
    with pytest.raises(CaptureError, match="17"):
        recorded(wrong, pictures(model), need)
    assert F.scaled_dot_product_attention is KERNEL


def test_a_model_that_drops_even_in_evaluation_is_refused():
    with pytest.raises(UnsupportedModelError, match="another output in another pass"):
        own_model(dropout_p=0.5)  # a model that drops even in evaluation: no two passes agree


def test_every_kind_of_recording_is_checked_against_the_plain_logits(fresh, pictures, monkeypatch):
    def off(*args, **kwargs):
        output, probabilities = explicit_attention(*args, **kwargs)
        return output * 1.1, probabilities

    model = fresh("vit")
    recorded(model, pictures(model), CLASS_ROWS)  # right, and checked
    monkeypatch.setattr("attncompare.capture.attention.explicit_attention", off)
    with pytest.raises(CaptureError, match="changes the logits"):
        recorded(model, pictures(model), GRADIENTS)


class Heard:
    """Notes what AttentionCalls passes on and answers as if it were not there."""

    def __init__(self):
        self.arguments, self.probabilities = [], []

    def kernel(self, query, key, value, *args, **kwargs):
        self.arguments.append((args, kwargs))
        return KERNEL(query, key, value, *args, **kwargs)

    def softmax(self, probabilities):
        self.probabilities.append(probabilities)
        return probabilities


def test_the_diverted_calls_see_every_argument():
    heard, query = Heard(), torch.randn(1, 2, 3, 4)
    with AttentionCalls(heard):
        F.scaled_dot_product_attention(query, query, query, None, 0.0, True, scale=0.5)
    F.scaled_dot_product_attention(query, query, query)
    assert heard.arguments == [((None, 0.0, True), {"scale": 0.5})]


@pytest.mark.parametrize(
    "softmax",
    [
        lambda x: F.softmax(x, dim=-1),
        lambda x: F.softmax(x, -1),
        lambda x: x.softmax(dim=-1),
        lambda x: x.softmax(3),
        lambda x: torch.softmax(x, -1),
        nn.Softmax(dim=-1),
    ],
)
def test_every_spelling_of_softmax_over_the_last_axis_is_heard(softmax):
    heard, scores = Heard(), torch.randn(1, 2, 3, 4)
    with AttentionCalls(heard):
        found = softmax(scores)
    softmax(scores)
    assert len(heard.probabilities) == 1 and heard.probabilities[0] is found


def test_a_softmax_that_is_no_attention_is_not_heard():
    heard, scores = Heard(), torch.randn(2, 3, 4, 5)
    with AttentionCalls(heard):
        scores.softmax(dim=1)  # over heads or branches
        scores[0].softmax(dim=-1)  # of three axes
    assert not heard.probabilities


@pytest.mark.parametrize("weights", [True, False])
def test_multi_head_attention_is_heard_whether_or_not_its_weights_are_asked_for(weights):
    heard, x = Heard(), torch.randn(2, 5, 8)
    module = nn.MultiheadAttention(8, 4, batch_first=True).eval()
    with torch.no_grad(), disable_mha_fastpath():
        plain, expected = module(x, x, x, average_attn_weights=False)
        with AttentionCalls(heard):
            output, _ = module(x, x, x, need_weights=weights)
    assert torch.allclose(output, plain, atol=1e-6)
    if weights:
        assert torch.allclose(heard.probabilities[0], expected, atol=1e-6)
    assert (len(heard.probabilities), len(heard.arguments)) == ((1, 0) if weights else (0, 1))
    assert F.softmax.__module__ == "torch.nn.functional" and F.scaled_dot_product_attention is KERNEL
