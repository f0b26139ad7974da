"""Modules made to mislead: each is read rightly or refused by name, never mapped to the wrong place."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.errors import AttnCompareError, CaptureError, UnsupportedModelError
from attncompare.inspection.attention_calls import explicit_attention

CELLS, SIDE, WIDTH = 8, 64, 24
ATTENTION_MAPS = ("class_attention", "fused_attention", "attention")


class Tokens(nn.Module):
    """A small transformer whose tokens are put into an order of their own."""

    def __init__(self, order=lambda tokens: tokens, pool=lambda tokens: tokens.mean(1)):
        super().__init__()
        self.patches, self.order, self.pool = nn.Conv2d(3, WIDTH, CELLS, CELLS), order, pool
        self.embed = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.extra, self.head = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Linear(WIDTH, 5)

    def forward(self, images):
        tokens = self.embed(self.patches(images).flatten(2).transpose(1, 2))
        extra = self.extra.expand(len(images), -1, -1)
        return self.head(self.pool(self.encoder(self.order((tokens, extra)))))


def shuffled(permutation):
    return lambda parts: parts[0][:, permutation]


SHUFFLES = {
    "by columns": torch.arange(64).reshape(8, 8).T.flatten(),
    "backwards": torch.arange(63, -1, -1),
    "at random": torch.randperm(64, generator=torch.Generator().manual_seed(0)),
    "snaking": torch.stack(
        [row if i % 2 == 0 else row.flip(0) for i, row in enumerate(torch.arange(64).reshape(8, 8))]
    ).flatten(),
    "shifted by one": torch.arange(64).roll(1),
}


def wrapped(module, **options):
    return ac.wrap_model(module.eval(), size=(SIDE, SIDE), **options)


def built(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def test_the_plain_order_is_understood():
    model = wrapped(built(lambda: Tokens(lambda parts: parts[0])))
    assert model.tokens.prefix == 0
    assert set(ATTENTION_MAPS) <= model.supplies


@pytest.mark.parametrize("name", SHUFFLES)
def test_tokens_in_another_order_get_no_map(name):
    model = wrapped(built(lambda: Tokens(shuffled(SHUFFLES[name]))))
    assert not set(ATTENTION_MAPS) & model.supplies
    assert "row by row" in model.missing["class_attention"]
    assert model.structure.feature_layer in ("embed", "patches")  # the last one before the order is lost


@pytest.mark.parametrize("pool", [lambda tokens: tokens.mean(1), lambda tokens: tokens[:, -1]], ids=["mean", "last"])
def test_tokens_behind_the_patches_get_no_map(pool):
    model = wrapped(built(lambda: Tokens(lambda parts: torch.cat(parts, dim=1), pool)))
    assert not set(ATTENTION_MAPS) & model.supplies


def test_a_class_token_before_and_a_register_behind_get_no_map():
    model = wrapped(built(lambda: Tokens(lambda p: torch.cat([p[1], p[0], p[1]], dim=1), lambda t: t[:, 0])))
    assert not set(ATTENTION_MAPS) & model.supplies


def test_a_class_token_and_registers_before_the_patches_are_understood():
    model = wrapped(built(lambda: Tokens(lambda p: torch.cat([p[1], p[1], p[1], p[0]], dim=1), lambda t: t[:, 0])))
    assert (model.tokens.prefix, model.tokens.grid, model.tokens.class_token) == (3, (8, 8), 0)


class Turned(nn.Module):
    """A CNN that turns what it sees before it looks again."""

    def __init__(self, turn):
        super().__init__()
        self.first, self.turn = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), turn
        self.second, self.head = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()), nn.Linear(12, 5)

    def forward(self, images):
        return self.head(self.second(self.turn(self.first(images))).mean((2, 3)))


TURNS = {"transposed": lambda x: x.transpose(2, 3), "mirrored": lambda x: x.flip(3), "upside down": lambda x: x.flip(2)}


@pytest.mark.parametrize("name", TURNS)
def test_features_that_are_turned_are_not_the_features(name):
    model = wrapped(built(lambda: Turned(TURNS[name])))
    assert model.structure.feature_layer == "first"
    assert "classifier_weights" in model.missing


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.look, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU()), nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.look(images).mean((2, 3)) + self.look(images.flip(3)).mean((2, 3)))


def test_a_layer_that_runs_twice_is_refused_by_name():
    model = wrapped(built(Twice))
    assert "once per pass" in model.missing["features"]
    chosen = wrapped(built(Twice), feature_layer="look")
    images = torch.rand(2, 3, SIDE, SIDE)
    for method in ("layer_cam", "grad_cam"):
        with pytest.raises((AttnCompareError), match=r"several times|once per pass"):
            ac.make_explainer(chosen, method).explain(images, 1)


class Adapted(nn.Linear):
    """As low-rank adapters do it."""

    def forward(self, x):
        return super().forward(x) + x.flip(-1) @ self.weight.T


def test_a_layer_that_does_more_than_its_weights_is_no_cam():
    module = built(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Adapted(8, 5))
    )
    assert "not the output of one linear layer" in wrapped(module).missing["classifier_weights"]


class Chance(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        return self.head(F.dropout(self.net(images), 0.5, training=True))


class Mixing(Chance):
    def forward(self, images):
        found = self.net(images)
        return self.head(found - found.mean(0))


@pytest.mark.parametrize("kind", [Chance, Mixing])
def test_an_output_that_depends_on_chance_or_on_other_images_is_refused(kind):
    with pytest.raises(UnsupportedModelError, match="another output in another pass"):
        wrapped(built(kind))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chance_is_refused_whatever_the_seed_of_the_process(seed):
    model = built(Chance)
    with (
        torch.random.fork_rng(devices=[]),
        pytest.raises(UnsupportedModelError, match="another output in another pass"),
    ):
        torch.manual_seed(seed)
        wrapped(model)


class Gated(nn.Module):
    def __init__(self, gate, twice=False):
        super().__init__()
        self.conv, self.gate, self.twice = nn.Conv2d(3, 8, 3, stride=4), gate, twice
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        found = self.gate(self.conv(images))
        return self.head((self.gate(found) if self.twice else found).mean((2, 3)))


class Scale(nn.Module):
    """A learned scale, the same for every image."""

    def __init__(self):
        super().__init__()
        self.values = nn.Embedding(1, 8)

    def forward(self, x):
        return x * self.values(torch.zeros(len(x), dtype=torch.long)).sigmoid().reshape(-1, 8, 1, 1)


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.make = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.make(x)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: Gated(Squeeze()), 1),
        (lambda: Gated(nn.Sequential(Squeeze())), 1),  # one gate, seen at two modules
        (lambda: Gated(Squeeze(), twice=True), 0),  # which of two runs?
        (lambda: Gated(Scale()), 0),
    ],
)
def test_gates_are_counted_once_and_belong_to_the_image(make, count):
    assert len(wrapped(built(make)).structure.se_layers) == count


def test_blocks_side_by_side_are_not_multiplied():
    class Parallel(Tokens):
        def __init__(self):
            super().__init__()
            self.other = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True)

        def forward(self, images):
            tokens = self.embed(self.patches(images).flatten(2).transpose(1, 2))
            return self.head((self.encoder.layers[0](tokens) + self.other(tokens)).mean(1))

    model = wrapped(built(Parallel))
    assert "side by side" in model.missing["fused_attention"]
    assert "class_attention" in model.supplies


def test_a_block_that_the_score_does_not_read_is_left_out():
    class Idle(Tokens):
        def forward(self, images):
            tokens = self.embed(self.patches(images).flatten(2).transpose(1, 2))
            seen = self.encoder.layers[0](tokens)
            self.encoder.layers[1](seen)
            return self.head(seen.mean(1))

    assert wrapped(built(Idle)).structure.attention_blocks == ("encoder.layers.0.self_attn",)


def test_sequences_with_the_batch_second_get_no_features():
    class SequenceFirst(Tokens):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, images):
            tokens = self.embed(self.patches(images).flatten(2).transpose(1, 2)).transpose(0, 1)
            return self.head(self.encoder(tokens).mean(0))

    model = wrapped(built(SequenceFirst))
    assert model.structure.feature_layer in (None, "embed", "patches")
    assert not set(ATTENTION_MAPS) & model.supplies


def test_compiled_modules_are_opened():
    module = built(lambda: Tokens(lambda parts: parts[0])).eval()
    assert ac.wrap_model(torch.compile(module), size=(SIDE, SIDE)).module is module


def test_a_captured_layer_may_run_in_many_passes_but_once_in_each():
    model = wrapped(built(lambda: Turned(lambda x: x)))
    images = torch.rand(2, 3, SIDE, SIDE)
    first = ac.make_explainer(model, "grad_cam").explain(images, 1).values
    assert torch.equal(first, ac.make_explainer(model, "grad_cam").explain(images, 1).values)
    with pytest.raises(CaptureError, match="several times"):
        ac.make_explainer(wrapped(built(Twice), feature_layer="look"), "hires_cam").explain(images, 1)


def twisted_attention(*args, **kwargs):
    output, probabilities = explicit_attention(*args, **kwargs)
    return 1.5 * output, probabilities


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_a_recording_that_changes_the_logits_is_refused(rounded, monkeypatch):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
        found = ac.make_explainer(ac.load_model("demo/vit"), "attention_rollout").explain(images)
        assert found.values.isfinite().all() and found.values.std() > 0
        monkeypatch.setattr("attncompare.capture.attention.explicit_attention", twisted_attention)
        with pytest.raises(CaptureError, match="recording changes the logits of demo/vit"):
            ac.make_explainer(ac.load_model("demo/vit"), "attention_rollout").explain(images)
