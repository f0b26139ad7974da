"""LeGrad, transformer attribution and AttnLRP, each derived again layer by layer in float64 on the same weights."""

import copy
from dataclasses import replace

import pytest
import torch
from references import lrp, transformer, vit
from references.compare import difference
from references.plain import Plain
from references.supply import supply
from torch import nn

import attncompare as ac
from attncompare.signals._base import request

RELATIVE = 1e-5
TARGET = torch.tensor([3, 1])
VITS = ["vit", "vit_mean", "hf_vit"]
VIT_KINDS = [*VITS, "vit_torchvision"]


def doubled(model):
    """The same model with float64 weights."""
    module = copy.deepcopy(model.module).double()
    return replace(model, source=replace(model.source, module=module), checked_recordings=set())


def signal(model, images, name, target=TARGET):
    """An extra signal of the package, in the precision of the model."""
    return supply(model, request(name), images, target)[0]


@pytest.mark.parametrize("name", VIT_KINDS)
def test_the_hand_written_vit_is_the_model(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    logits, attention = vit.run(vit.weights_of(model), Plain(model).normalized(images))
    torch.testing.assert_close(logits.detach(), Plain(model)(images).detach(), atol=1e-12, rtol=0)
    assert len(attention) == 3
    assert attention[0].shape == (2, 2, 17, 17) if model.tokens.prefix else (2, 2, 16, 16)


# LeGrad


@pytest.mark.parametrize("name", VIT_KINDS)
def test_legrad_is_the_mean_over_blocks_of_each_blocks_own_positive_gradients(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    shown = ac.make_explainer(model, "legrad").explain(images, TARGET)
    assert difference(shown.values, transformer.legrad(model, images, TARGET)) <= RELATIVE


@pytest.mark.parametrize("name", VITS)
def test_the_block_gradients_are_those_of_the_derivation_to_rounding_in_float64(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model).double()
    found = signal(doubled(model), images, "block_gradients")
    for one, expected in zip(found, transformer.legrad_gradients(model, images, TARGET), strict=True):
        assert difference(one, expected) <= 1e-12


@pytest.mark.parametrize("name", VITS)
def test_one_backward_pass_of_the_summed_scores_would_be_another_map(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    uncut = transformer.legrad_gradients(model, images, TARGET, cut=False)
    cut = transformer.legrad_gradients(model, images, TARGET)
    assert difference(uncut[-1], cut[-1]) <= 1e-12  # nothing comes behind the last block
    assert difference(uncut[0], cut[0]) > 0.1
    shown = ac.make_explainer(model, "legrad").explain(images, TARGET)
    assert difference(shown.values, transformer.legrad(model, images, TARGET, cut=False)) > 0.1


# Transformer attribution (Chefer et al., CVPR 2021)


@pytest.mark.parametrize("name", VITS)
def test_the_relevance_of_every_block_is_that_of_the_layer_by_layer_derivation(tiny, pictures, name):
    """To the rounding of what is handed on, float32."""
    model = tiny(name)
    images = pictures(model).double()
    found = signal(doubled(model), images, "attention_relevance")
    for index in range(2):
        expected = lrp.attention_relevance(model, images[index : index + 1], int(TARGET[index]))
        assert difference(torch.stack([one[index] for one in found]), torch.stack(expected)) <= 1e-7


@pytest.mark.parametrize("name", VIT_KINDS)
def test_transformer_lrp_is_the_layer_by_layer_derivation(tiny, pictures, name):
    model = tiny(name)
    images = pictures(model)
    shown = ac.make_explainer(model, "transformer_lrp").explain(images, TARGET)
    assert difference(shown.values, lrp.transformer_lrp(model, images, TARGET)) <= RELATIVE


def test_transformer_lrp_of_a_trained_model_does_not_hang_on_rounding():
    model = ac.load_model("demo/vit")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = ac.make_explainer(model, "transformer_lrp").explain(images, TARGET[:1])
    assert difference(shown.values, lrp.transformer_lrp(model, images, TARGET[:1])) <= RELATIVE


# AttnLRP


@pytest.mark.parametrize(
    ("name", "gammas"),
    [(name, {"conv_gamma": 0.0, "linear_gamma": 0.0}) for name in VIT_KINDS] + [(name, {}) for name in VIT_KINDS],
)
def test_attn_lrp_is_input_times_gradient_of_a_model_modified_by_hand(tiny, pictures, name, gammas):
    """Fixed divisors, value / input for GELU, halves at products, and shares of contributions in linear layers."""
    model = tiny(name)
    images = pictures(model)
    shown = ac.make_explainer(model, "attn_lrp", **gammas).explain(images, TARGET)
    assert difference(shown.values, lrp.attn_lrp(model, images, TARGET, **gammas)) <= RELATIVE


@pytest.mark.parametrize("name", VITS)
def test_without_its_rules_attn_lrp_would_be_another_map(tiny, pictures, name):
    """Input times gradient of the model as it is, so that the test above can tell the rules from none."""
    model = tiny(name)
    images = pictures(model)
    w = vit.weights_of(model)
    x = Plain(model).normalized(images).requires_grad_(True)
    score = vit.scores_of(vit.read_out(w, _through(w, vit.embed(w, x))), TARGET).sum()
    plain = (x * torch.autograd.grad(score, x)[0]).sum(dim=1)
    assert difference(plain, lrp.attn_lrp(model, images, TARGET, 0.0, 0.0)) > 0.1


def _through(w, x):
    for block in w.blocks:
        x, _ = vit.run_block(w, block, x)
    return x


def without_biases(module):
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith(("bias", "running_mean", "pos_embed", "cls_token")):
                value.zero_()
    return module


def test_relevance_of_a_cnn_without_biases_adds_up_to_the_logit(build, pictures):
    model = ac.wrap_model(without_biases(build("overwriting_cnn")), size=(32, 32))
    images = pictures(model)
    for gammas in ({"conv_gamma": 0.0, "linear_gamma": 0.0}, {"conv_gamma": 0.5, "linear_gamma": 0.5}):
        shown = ac.make_explainer(model, "attn_lrp", **gammas).explain(images, TARGET)
        logits = model.forward(images).gather(1, TARGET[:, None])[:, 0].detach()
        size = shown.values.abs().sum(dim=(1, 2))
        assert ((shown.values.sum(dim=(1, 2)) - logits).abs() <= 1e-6 * size).all()


def test_relevance_of_a_vit_is_the_logit_less_what_softmax_absorbs(build, pictures):
    """Softmax is not homogeneous: of the R that reaches it, sum x_j (R_j - s_j sum R) goes on (equation 13).

    What the queries and keys lose of their half is the only relevance missing in a ViT without biases and positions.
    """
    model = ac.wrap_model(without_biases(build("vit_mean")), size=(32, 32))
    images, w = pictures(model), vit.weights_of(model)
    kept = []
    x = Plain(model).normalized(images).requires_grad_(True)
    logits = vit.scores_of(lrp.attn_lrp_logits(w, x, 0.0, 0.0, kept=kept), TARGET)
    flat = [one for pair in kept for one in pair]
    gradients = torch.autograd.grad(logits.sum(), flat)
    absorbed = torch.zeros(2, dtype=torch.float64)
    for (scores, attention), onward, arrived in zip(kept, gradients[::2], gradients[1::2], strict=True):
        of_attention, of_scores = attention * arrived, scores * onward
        by_hand = scores * (of_attention - attention * of_attention.sum(dim=-1, keepdim=True))
        torch.testing.assert_close(of_scores, by_hand)
        absorbed += (of_attention.sum(dim=(1, 2, 3)) - of_scores.sum(dim=(1, 2, 3))).detach()
    shown = ac.make_explainer(model, "attn_lrp", conv_gamma=0.0, linear_gamma=0.0).explain(images, TARGET)
    assert (absorbed.abs() > 0.02 * logits.abs()).all()
    size = shown.values.abs().sum(dim=(1, 2)).double()
    missing = shown.values.double().sum(dim=(1, 2)) + absorbed - logits.detach()
    assert (missing.abs() <= 1e-6 * size).all()


def gamma_by_loops(x, weight, bias, gamma, relevance):
    """R_i = sum_o of c_oi / (sum_i c_oi + c_o) R_o, contributions of the output's own sign counting 1 + gamma fold."""
    found = torch.zeros_like(x)
    for row in range(len(x)):
        for o in range(len(weight)):
            output = float(bias[o]) + sum(float(x[row, i] * weight[o, i]) for i in range(x.shape[1]))
            parts = [float(x[row, i] * weight[o, i]) for i in range(x.shape[1])] + [float(bias[o])]
            parts = [part * (1 + gamma) if part * output > 0 else part for part in parts]
            for i in range(x.shape[1]):
                found[row, i] += parts[i] / sum(parts) * relevance[row, o]
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.25, 10.0])
def test_the_gamma_rule_of_one_linear_layer(gamma):
    torch.manual_seed(3)
    layer = nn.Linear(48, 4)
    model = ac.wrap_model(nn.Sequential(nn.Flatten(), layer), size=(4, 4))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    shown = ac.make_explainer(model, "attn_lrp", linear_gamma=gamma).explain(images, TARGET)
    x = Plain(model).normalized(images).flatten(1).requires_grad_(True)
    weights = layer.weight.detach().double(), layer.bias.detach().double()
    logits = vit.linear(x, weights).detach()
    relevance = torch.zeros_like(logits)
    for row, index in enumerate(TARGET):
        relevance[row, index] = logits[row, index]
    expected = gamma_by_loops(x.detach(), *weights, gamma, relevance)
    assert difference(shown.values, expected.reshape(2, 3, 4, 4).sum(dim=1)) <= RELATIVE
    score = vit.scores_of(lrp.gamma_linear(x, weights, gamma), TARGET).sum()
    torch.testing.assert_close((x * torch.autograd.grad(score, x)[0]).detach(), expected)


def test_a_convolution_whose_relu_writes_in_place_keeps_its_relevance(build, pictures):
    """As in VGG: nothing stands between the convolution and the ReLU that overwrites its output."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    apart = copy.deepcopy(module)
    apart[1].inplace = False
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = [
        ac.make_explainer(ac.wrap_model(one.eval(), size=(16, 16), feature_layer="0"), "attn_lrp").explain(images, 1)
        for one in (module, apart)
    ]
    torch.testing.assert_close(maps[0].values, maps[1].values)
    assert maps[0].values.abs().max() > 0


class Gated(nn.Module):
    """A quick GELU, written out as transformers does."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def test_a_sigmoid_gate_is_a_constant_and_relevance_is_kept():
    """Without biases all relevance is the logit, and a pixel's is input times gradient behind fixed gates."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, bias=False), Gated(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=False)
    net = nn.Sequential(*layers).eval()
    model = ac.wrap_model(net, size=(12, 12), mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    shown = ac.make_explainer(model, "attn_lrp", conv_gamma=0.0, linear_gamma=0.0).explain(images, 1).values
    logits = net(images)[:, 1].detach()
    torch.testing.assert_close(shown.sum((1, 2)), logits, atol=1e-5, rtol=1e-4)
    x = images.clone().requires_grad_(True)
    features = net[0](x)
    fixed = net[4]((features * torch.sigmoid(1.702 * features).detach()).mean((2, 3)))
    expected = (x * torch.autograd.grad(fixed[:, 1].sum(), x)[0]).sum(1)
    torch.testing.assert_close(shown, expected.detach(), atol=1e-6, rtol=1e-4)


class Spelled(nn.Module):
    """One transformer block whose attention and layer norm are spelled in one of several ways."""

    def __init__(self, attention, norm):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.spelling = attention, norm
        self.patches, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)

    def normalized(self, t):
        if self.spelling == "by hand":
            centered = t - t.mean(-1, keepdim=True)
            return centered / (t.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        if self.spelling == "torch.layer_norm":
            return torch.layer_norm(t, (16,), self.norm.weight, self.norm.bias)
        if self.spelling == "group norm":
            return nn.functional.group_norm(t.reshape(-1, 16), 1).reshape(t.shape)
        return self.norm(t)

    def mixed(self, q, k, v):
        if self.attention == "einsum":
            return torch.einsum("bnm,bmc->bnc", (torch.einsum("bnc,bmc->bnm", q, k) / 4).softmax(-1), v)
        if self.attention == "baddbmm":
            nothing = torch.zeros(len(q), q.shape[1], k.shape[1])
            return torch.bmm(torch.baddbmm(nothing, q, k.transpose(1, 2), alpha=0.25).softmax(-1), v)
        return (q @ k.transpose(1, 2) / 4).softmax(-1) @ v

    def forward(self, x):
        t = self.normalized(self.patches(x).flatten(2).transpose(1, 2))
        y = self.out(self.mixed(*self.qkv(t).chunk(3, -1)))
        y += t  # into the output of a linear layer
        return self.head(y.mean(1))


@pytest.mark.parametrize(
    ("attention", "norm"),
    [
        ("einsum", "module"),
        ("baddbmm", "module"),
        *(("matmul", n) for n in ("by hand", "torch.layer_norm", "group norm")),
    ],
)
@pytest.mark.parametrize("gamma", [0.0, 0.25])
def test_the_rules_do_not_hang_on_how_a_function_is_spelled(attention, norm, gamma):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"conv_gamma": gamma, "linear_gamma": gamma}
    shown, plain = (
        ac.make_explainer(ac.wrap_model(Spelled(*how).eval(), size=(32, 32)), "attn_lrp", **options).explain(images, 1)
        for how in ((attention, norm), ("matmul", "module"))
    )
    assert difference(shown.values, plain.values) <= RELATIVE
