"""What wrap_model finds in a module, and what it says where something is missing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attncompare as ac
from attncompare.errors import AttnCompareError, UnknownNameError, UnsupportedModelError
from attncompare.inspection.layout import TokenLayout
from attncompare.inspection.structure import Classifier, SELayer
from attncompare.registry import signals

TIMM_BLOCKS = ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit", TokenLayout(1, (4, 4), 0)),
        ("vit_mean", TokenLayout(0, (4, 4), None)),
        ("vit_registers", TokenLayout(5, (4, 4), 0)),
        ("vit_distilled", TokenLayout(2, (4, 4), (0, 1))),
        ("vit_oblong", TokenLayout(1, (4, 6), 0)),
        ("vit_torchvision", TokenLayout(1, (4, 4), 0)),
        ("embedding_vit", TokenLayout(1, (4, 4), 0)),
        ("hf_vit", TokenLayout(1, (4, 4), 0)),
        ("hf_deit", TokenLayout(2, (4, 4), 0)),
        ("hf_deit_teacher", TokenLayout(2, (4, 4), (0, 1))),
        ("hf_dinov2_registers", TokenLayout(5, (4, 4), 0)),
    ],
)
def test_the_token_layout_is_read_from_the_model(tiny, name, layout):
    assert tiny(name).tokens == layout
    assert tiny(name).family == "vit"


@pytest.mark.parametrize(
    ("name", "layer", "blocks"),
    [
        ("vit", "blocks.2.norm1", TIMM_BLOCKS),
        ("vit_mean", "blocks.2.norm1", TIMM_BLOCKS),
        (
            "vit_torchvision",
            "encoder.layers.encoder_layer_2.ln_1",
            tuple(f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(3)),
        ),
        ("hf_vit", "vit.layers.2.layernorm_before", tuple(f"vit.layers.{i}.attention" for i in range(3))),
    ],
)
def test_the_feature_layer_of_a_vit_feeds_its_last_attention(tiny, name, layer, blocks):
    assert tiny(name).structure.feature_layer == layer
    assert tiny(name).structure.attention_blocks == blocks


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *(
            (name, "blocks.{}")
            for name in ("vit", "vit_mean", "vit_registers", "vit_distilled", "vit_oblong", "embedding_vit")
        ),
        ("vit_torchvision", "encoder.layers.encoder_layer_{}"),
        ("hf_vit", "vit.layers.{}"),
        ("hf_deit", "deit.layers.{}"),
        ("hf_dinov2_registers", "dinov2_with_registers.encoder.layer.{}"),
    ],
)
def test_the_blocks_around_attention_hand_their_tokens_on(tiny, name, blocks):
    found = tiny(name)
    assert found.structure.token_blocks == tuple(blocks.format(number) for number in range(3))
    assert {"block_gradients", "attention_relevance"} <= found.supplies


@pytest.mark.parametrize("name", ["cnn", "swin", "cait", "vit_map_pool", "levit", "xcit"])
def test_where_blocks_do_not_hand_their_tokens_on_the_signals_of_blocks_are_missing(tiny, name):
    found = tiny(name)
    assert found.structure.token_blocks == ()
    for signal in ("block_gradients", "attention_relevance"):
        assert signal not in found.supplies
        assert len(found.missing[signal]) > 20


def chained(between):
    """A ViT with something between its blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)

        class Chained(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
                self.patches, self.head = nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 5)
                self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers

            def forward(self, images):
                tokens = self.layers[0](self.patches(images).flatten(2).transpose(1, 2))
                return self.head(self.layers[1](between(tokens)).mean(dim=1))

        return ac.wrap_model(Chained().eval(), size=(32, 32))


def test_tokens_that_are_changed_between_two_blocks_break_the_chain():
    assert chained(lambda tokens: tokens).structure.token_blocks == ("layers.0", "layers.1")
    assert chained(lambda tokens: 2 * tokens).structure.token_blocks == ()
    missing = chained(lambda tokens: tokens + 1).missing
    assert "blocks each of which hands its tokens to the next" in missing["block_gradients"]


@pytest.mark.parametrize("name", ["embedding_cnn", "embedding_vit"])
def test_an_embedding_has_scores_but_no_classes(tiny, name):
    found = tiny(name)
    assert "scores" in found.supplies
    assert found.missing["class_scores"] == "its output is an embedding; it has no classes"


@pytest.mark.parametrize(
    ("name", "family", "layer", "stages"),
    [
        ("cnn", "cnn", "5", ("2", "5")),
        ("overwriting_cnn", "cnn", "features", ("features",)),
        ("se_cnn", "cnn", "2", ("0.3", "0", "1", "2")),
        ("swin", "hierarchical", "norm", ("patch_embed", "norm")),
    ],
)
def test_the_feature_layer_of_a_cnn_is_its_last_stage(tiny, name, family, layer, stages):
    found = tiny(name).structure
    assert (found.family, found.feature_layer) == (family, layer)
    assert found.stages == stages


def test_attention_weights_of_a_window_are_no_stage(tiny):
    assert not [stage for stage in tiny("swin").structure.stages if "attn" in stage or "softmax" in stage]


def test_a_mean_beside_an_unread_class_token_is_read_out_as_a_mean(build):
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = VisionTransformer(**sizes, global_pool="avg", class_token=True)
    assert ac.wrap_model(module, size=(32, 32)).tokens == TokenLayout(1, (4, 4), None)


def test_a_zero_head_does_not_hide_the_class_token(build):
    module = build("vit_torchvision")
    nn.init.zeros_(module.heads.head.weight)
    assert ac.wrap_model(module, size=(32, 32)).tokens == TokenLayout(1, (4, 4), 0)


def test_attention_pooling_is_one_more_reader_behind_the_blocks(pictures):
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = VisionTransformer(**sizes, global_pool="map", class_token=False)
    model = ac.wrap_model(module, size=(32, 32))
    assert model.tokens == TokenLayout(0, (4, 4), None)
    assert model.attention_tokens == TokenLayout(1, (4, 4), 0)
    assert model.structure.attention_blocks == ("blocks.0.attn", "blocks.1.attn", "attn_pool")
    assert model.structure.pooling_blocks == ("attn_pool",)
    maps = ac.explain_together(model, ["class_attention", "attention_rollout", "gradient_rollout"], pictures(model), 1)
    assert all(shown.values.shape == (2, 4, 4) for shown in maps.values())
    torch.testing.assert_close(maps["class_attention"].values.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("cnn", Classifier("5", "8")),
        ("se_cnn", Classifier("2", "5")),
        ("swin", Classifier("norm", "head.fc")),
        ("overwriting_cnn", Classifier("features", "classifier", rectified=True)),  # the mean is behind a bare ReLU
        ("vit", None),
        ("embedding_cnn", None),
    ],
)
def test_a_classifier_on_average_pooling_is_found_by_value(tiny, name, classifier):
    found = tiny(name)
    assert found.structure.classifier == classifier
    assert ("classifier_weights" in found.supplies) == (classifier is not None)


def test_max_pooling_before_the_classifier_is_no_cam(build):
    module = build("cnn")
    module[6] = nn.AdaptiveMaxPool2d(1)
    model = ac.wrap_model(module, size=(32, 32))
    assert model.structure.classifier is None
    assert "global average pooling" in model.missing["classifier_weights"]


def test_logits_that_are_scaled_after_the_linear_layer_are_no_cam(build):
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build("cnn")

        def forward(self, images):
            return 3 * self.net(images)

    model = ac.wrap_model(Tempered(), size=(32, 32))
    assert model.structure.classifier is None
    assert "not the output of one linear layer" in model.missing["pooled_features"]


def test_a_one_by_one_convolution_is_a_classifier_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 5, 1), nn.Flatten())
    assert ac.wrap_model(module, size=(32, 32)).structure.classifier == Classifier("1", "3")


class Gated(nn.Module):
    """A gate by another name: nothing but its values tells that it is channel attention."""

    def __init__(self, channels, multiply=True):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        self.multiply = multiply

    def forward(self, x):
        values = self.squeeze(x.mean(dim=(2, 3), keepdim=True))
        return x * values if self.multiply else x + values


def gated_net(multiply):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Gated(6, multiply)]
        return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def test_gates_are_found_by_their_values(tiny):
    assert [
        (gate.layer, gate.values) for gate in ac.wrap_model(gated_net(True), size=(32, 32)).structure.se_layers
    ] == [("2", "2.squeeze")]
    assert [gate.layer for gate in tiny("se_cnn").structure.se_layers] == ["0.3", "1.3", "2.3"]


def test_a_norm_that_starts_at_zero_does_not_hide_the_gates_behind_it():
    model = ac.load_model("timm/seresnext26d_32x4d@random")
    assert len(model.structure.se_layers) == 8


class Resting(nn.Module):
    """A gate of one hidden ReLU unit that is at rest on both images of the probe; without `input_`, a learned scale."""

    def __init__(self, input_=True):
        super().__init__()
        self.hidden, self.sigmoid, self.input = nn.Linear(6, 1), nn.Sigmoid(), input_
        nn.init.constant_(self.hidden.bias, -3.0)

    def forward(self, x):
        hidden = self.hidden(x.mean(dim=(2, 3)) if self.input else x.new_zeros(len(x), 6)).relu()
        return x * self.sigmoid(hidden.expand(-1, 6))[:, :, None, None]


@pytest.mark.parametrize(("input_", "found"), [(True, [SELayer("2", "2.sigmoid")]), (False, [])])
def test_gates_at_rest_are_told_from_a_learned_scale(input_, found):
    torch.manual_seed(0)
    trunk = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Resting(input_)]
    net = nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    assert list(ac.wrap_model(net, size=(32, 32)).structure.se_layers) == found


def test_a_module_that_adds_instead_of_multiplying_is_no_gate():
    model = ac.wrap_model(gated_net(False), size=(32, 32))
    assert model.structure.se_layers == ()
    assert "returns gates that multiply its channels" in model.missing["channel_attention"]


@pytest.mark.parametrize(
    ("name", "signal", "reason"),
    [
        ("cnn", "attention", "no softmax attention between image positions"),
        ("cnn", "tokens", "no softmax attention between image positions"),
        ("cnn", "channel_attention", "returns gates that multiply its channels"),
        ("swin", "fused_attention", "use window_attention or hierarchical_rollout"),
        ("vit", "window_attention", "use class_attention, attention_rollout or gradient_rollout"),
        ("xcit", "attention", "only its last blocks attend globally"),
        ("vit", "classifier_weights", "global average pooling"),
        ("vit_distilled", "classifier_weights", "not the output of one linear layer"),
        ("embedding_cnn", "classifier_weights", "its output is an embedding, and no linear layer"),
    ],
)
def test_every_missing_signal_has_a_reason(tiny, name, signal, reason):
    assert reason in tiny(name).missing[signal]
    assert reason in tiny(name).describe()["missing"][signal]
    assert signal not in tiny(name).supplies


def test_supplied_and_missing_signals_are_all_signals(each_tiny):
    missing = set(each_tiny.missing)
    assert each_tiny.supplies | missing == set(signals.names())
    assert not each_tiny.supplies & missing


class Mine(nn.Module):
    """A module of one's own: odd names, odd widths, a head that reads the patches evenly."""

    def __init__(self):
        super().__init__()
        self.eye = nn.Conv2d(3, 24, 8, stride=8)
        self.look = nn.MultiheadAttention(24, 3, batch_first=True)
        self.before, self.after = nn.LayerNorm(24), nn.LayerNorm(24)
        self.answer = nn.Linear(24, 7)

    def forward(self, images):
        tokens = self.eye(images).flatten(2).transpose(1, 2)
        ready = self.before(tokens)
        tokens = tokens + self.look(ready, ready, ready, need_weights=False)[0]
        return {"logits": self.answer(self.after(tokens).mean(dim=1))}


def test_a_module_of_ones_own_is_understood_without_help(pictures):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ac.wrap_model(Mine(), size=(32, 40), name="mine")
    assert model.tokens == TokenLayout(0, (4, 5), None)
    assert model.structure.attention_blocks == ("look",)
    assert model.structure.feature_layer == "before"
    maps = ac.explain_together(
        model, ["attention_rollout", "gradient_rollout", "grad_cam", "saliency"], pictures(model)
    )
    assert {name: tuple(shown.values.shape[1:]) for name, shown in maps.items()} == {
        "attention_rollout": (4, 5),
        "gradient_rollout": (4, 5),
        "grad_cam": (4, 5),
        "saliency": (32, 40),
    }


class PlainEncoder(nn.Module):
    """A ViT around PyTorch's own encoder, as many write it themselves."""

    def __init__(self, layers, norm_first):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.class_token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens + self.places)[:, 0])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_pytorchs_own_encoder_is_understood(pictures, layers, norm_first):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ac.wrap_model(PlainEncoder(layers, norm_first).eval(), size=(32, 32))
    assert model.tokens == TokenLayout(1, (4, 4), 0)
    assert model.structure.attention_blocks == tuple(f"encoder.layers.{i}.self_attn" for i in range(layers))
    maps = ac.explain_together(model, ["attention_rollout", "gradient_rollout", "hires_cam"], pictures(model), 1)
    assert all(shown.values.shape == (2, 4, 4) and shown.values.std() > 0 for shown in maps.values())


class Returning(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 4, 3), change

    def forward(self, images):
        return self.change(self.conv(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x, r"returned shape \(2, 4, 30, 30\); \(B, K\) logits are needed"),
        (lambda x: x.mean(), r"returned shape \(\)"),
        (lambda x: [x.mean(dim=(2, 3))], "returned list"),
        (lambda x: {"scores": x.mean(dim=(2, 3))}, "returned dict"),
        (lambda x: None, "returned NoneType"),
    ],
)
def test_an_output_that_is_no_row_of_scores_is_refused(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ac.wrap_model(Returning(change), size=(32, 32))


def test_a_module_that_fails_on_the_stated_size_is_refused_with_its_own_words():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 5))
    with pytest.raises(
        UnsupportedModelError,
        match=r"user/model does not run on \(2, 3, 32, 32\), or what it does there cannot be followed: .*shapes",
    ):
        ac.wrap_model(module, size=(32, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(build, value):
    module = build("vit")
    with torch.no_grad():
        module.blocks[1].attn.qkv.bias[3] = value
    with pytest.raises(UnsupportedModelError, match=r"non-finite weights in blocks.1.attn.qkv.bias \(1 tensors"):
        ac.wrap_model(module, size=(32, 32))


def test_a_module_without_parameters_is_wrapped():
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = ac.wrap_model(module, size=(32, 32))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.forward(images), 2 * images.mean(dim=(2, 3)) - 1)


def test_a_named_feature_layer_takes_the_place_of_the_one_found(build, pictures):
    model = ac.wrap_model(build("cnn"), size=(32, 32), feature_layer="2")
    assert model.structure.feature_layer == "2"
    shown = ac.explain_together(model, ["layer_cam", "grad_cam"], pictures(model))
    assert [tuple(one.values.shape) for one in shown.values()] == [(2, 32, 32), (2, 32, 32)]


def test_a_named_feature_layer_that_does_not_exist_is_refused_with_suggestions(build):
    with pytest.raises(UnknownNameError, match=r"no layer 'blocks.2.norm'; did you mean"):
        ac.make_explainer(ac.wrap_model(build("vit"), size=(32, 32), feature_layer="blocks.2.norm"), "layer_cam")


def test_a_token_layout_and_blocks_of_ones_own_are_used(build, pictures):
    mean = TokenLayout(1, (4, 4), None)
    model = ac.wrap_model(build("vit"), size=(32, 32), tokens=mean)
    assert model.tokens == mean
    shown = ac.make_explainer(model, "class_attention").explain(pictures(model))
    other = ac.make_explainer(ac.wrap_model(build("vit"), size=(32, 32)), "class_attention").explain(pictures(model))
    assert (shown.values - other.values).abs().max() > 1e-3


def test_a_layout_given_for_a_model_whose_own_is_not_found_makes_it_explainable(pictures):
    class Shuffled(nn.Module):
        """Its patches come from an unfold in an order of their own."""

        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(192, 16), nn.LayerNorm(16), nn.Linear(16, 5)
            self.look = nn.MultiheadAttention(16, 2, batch_first=True)
            self.order = torch.randperm(16)

        def forward(self, images):
            tokens = self.norm(self.embed(F.unfold(images, 8, stride=8).transpose(1, 2)[:, self.order]))
            return self.head((tokens + self.look(tokens, tokens, tokens, need_weights=False)[0]).mean(dim=1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Shuffled()
    missing = ac.wrap_model(module, size=(32, 32)).missing
    assert "its 16 tokens do not lie on the image row by row" in missing["attention"]
    layout = TokenLayout(0, (4, 4), None)
    model = ac.wrap_model(module, size=(32, 32), tokens=layout, attention_blocks=("look",), feature_layer="norm")
    images = pictures(model)
    assert ac.make_explainer(model, "attention_rollout").explain(images).values.shape == (2, 4, 4)
    assert ac.make_explainer(model, "layer_cam").explain(images).values.shape == (2, 4, 4)


def test_an_unknown_override_is_refused_with_the_known_ones(build):
    with pytest.raises(UnknownNameError, match=r"does not know \['layer'\]; known: .*feature_layer"):
        ac.wrap_model(build("cnn"), size=(32, 32), layer="5")


def test_a_token_layout_of_another_type_is_refused(build):
    with pytest.raises(UnsupportedModelError, match="TokenLayout"):
        ac.wrap_model(build("vit"), size=(32, 32), tokens=(1, (4, 4), 0))


def test_the_description_names_what_was_found(tiny):
    found = tiny("vit_distilled").describe()
    assert found["tokens"] == {"prefix": 2, "grid": (4, 4), "class_token": (0, 1), "length": 18}
    assert found["attention_blocks"] == list(TIMM_BLOCKS)
    assert tiny("se_cnn").describe()["channel_attention"] == ["0.3", "1.3", "2.3"]


def test_class_names_are_kept_and_fall_back_to_numbers(build):
    names = ("ant", "bee", "cat", "dog", "elk")
    model = ac.wrap_model(build("cnn"), size=(32, 32), class_names=names)
    assert [model.class_name(index) for index in (0, 4, 9)] == ["ant", "elk", "9"]
    assert ac.wrap_model(build("cnn"), size=(32, 32)).class_name(2) == "2"


def test_mean_and_std_are_applied_inside_the_model(build):
    module = build("cnn")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = ac.wrap_model(module, size=(32, 32), mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ready = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model.forward(images), module(ready), atol=1e-6, rtol=1e-5)


def test_the_weights_hash_follows_every_weight(build):
    first, second = ac.wrap_model(build("cnn"), size=(32, 32)), ac.wrap_model(build("cnn"), size=(32, 32))
    assert first.weights_hash == second.weights_hash
    changed = build("cnn")
    changed[1].running_mean[0] += 1e-3
    assert ac.wrap_model(changed, size=(32, 32)).weights_hash != first.weights_hash


def test_a_classifier_and_gates_of_ones_own_are_used_and_no_longer_missing(build, pictures):
    class Two(nn.Module):
        """The mean goes through a norm, so that CAM is the user's own decision."""

        def __init__(self):
            super().__init__()
            self.net, self.norm, self.head = build("cnn")[:6], nn.LayerNorm(12), nn.Linear(12, 5)

        def forward(self, images):
            return self.head(self.norm(self.net(images).mean((2, 3))))

    module = Two().eval()
    assert "classifier_weights" in ac.wrap_model(module, size=(32, 32)).missing
    model = ac.wrap_model(module, size=(32, 32), classifier=Classifier("net", "head"))
    assert model.structure.classifier == Classifier("net", "head")
    assert ac.make_explainer(model, "cam").explain(pictures(model)).values.shape == (2, 16, 16)
    module = build("cnn")
    model = ac.wrap_model(module, size=(32, 32), se_layers=(SELayer("4", "5"),))
    assert "channel_attention" in model.supplies


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classifier": ("5", "8")}, r"Classifier\(feature_module, linear\)"),
        ({"se_layers": [("4", "5")]}, r"tuple of SELayer\(layer, values\)"),
        ({"classifier": Classifier("5", "88")}, "no layer '88'"),
        ({"se_layers": (SELayer("4", "nothing"),)}, "no layer 'nothing'"),
    ],
)
def test_an_override_that_cannot_be_is_refused(build, given, message):
    with pytest.raises(AttnCompareError, match=message):
        ac.wrap_model(build("cnn"), size=(32, 32), **given)


class TwoHeads(nn.Module):
    """As VOLO does it: one dropout before both heads, so that it runs on the class token's row and on the tokens."""

    def __init__(self):
        super().__init__()
        self.trunk, self.drop = nn.Conv2d(3, 6, 8, stride=8), nn.Dropout(0.5)
        self.head, self.more = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, images):
        features = self.drop(self.trunk(images))
        return self.head(self.drop(features.amax((2, 3)))) + self.more(features.mean((2, 3)))


def test_a_module_that_runs_twice_is_no_feature_layer():
    model = ac.wrap_model(TwoHeads(), size=(32, 32))
    assert model.structure.feature_layer == "trunk"
    assert ac.explain_together(model, ["grad_cam"], torch.rand(2, 3, 32, 32))["grad_cam"].values.shape == (2, 4, 4)
