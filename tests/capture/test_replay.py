"""The part of a model behind one layer, run on other outputs of it, against the whole model with a hook on that layer."""

import pytest
import torch
import torch.nn.functional as F
from references.supply import supply
from torch import nn

import attncompare as ac
from attncompare.capture.replay import Replay, modules_before, select_images
from attncompare.errors import CaptureError
from attncompare.inspection.layout import find_layout, join_features, split_features
from attncompare.inspection.structure import ModelStructure
from attncompare.models.adapter import ModelAdapter, ModelSource
from attncompare.models.preprocessing import Preprocessing
from attncompare.signals._base import request
from attncompare.signals.ablated_scores import AblatedScores
from attncompare.state import preserve_state

WHICH = [2, 0, 1, 2, 2, 0]


class Residual(nn.Module):
    """Blocks with skip connections; one in-place ReLU serves them all."""

    def __init__(self, relu):
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.relu = nn.Conv2d(8, 8, 3, padding=1), relu

    def forward(self, x):
        y = self.second(self.relu(self.norm(self.first(x))))
        y += x
        return self.relu(y)


class ResidualNet(nn.Module):
    """A residual net as torchvision builds them, but for the head: two layers, so that the mean alone does not make it."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList([Residual(self.relu) for _ in range(3)])
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, images):
        x = self.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(F.gelu(self.hidden(x.mean((2, 3)))))


class TorchEncoder(nn.Module):
    """Around PyTorch's encoder, whose fast path calls no module inside it."""

    def __init__(self):
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 16, 8, stride=8), nn.Parameter(torch.randn(1, 17, 16))
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens + self.places)[:, 0])


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


OWN = {"residual": ResidualNet, "torch_encoder": TorchEncoder}


@pytest.fixture
def model_of(tiny):
    """A model by name: a tiny one, or one of this file's."""

    def find(name):
        return ac.wrap_model(seeded(OWN[name]), size=(32, 32), name=name) if name in OWN else tiny(name)

    return find


def with_output(model, path, images, change):
    """The whole model, the output of one layer replaced by what `change` makes of its first tensor: the slow way."""

    def hook(module, args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = model.module.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad(), preserve_state(model.module):
            return model.forward(images)
    finally:
        handle.remove()


LAYERS = [
    ("residual", "blocks.1"),
    ("residual", "blocks.1.first"),
    ("residual", "blocks.2.second"),  # += and ReLU write into it
    ("cnn", "1"),  # and here the ReLU behind
    ("overwriting_cnn", "features"),
    ("vit", "blocks.1"),
    ("vit", "blocks.2.norm1"),
    ("vit_torchvision", "encoder.layers.encoder_layer_2.ln_1"),
    ("vit_distilled", "blocks.1.attn.proj"),
    ("hf_vit", "vit.layers.2.layernorm_before"),
    ("hf_dinov2_registers", "dinov2_with_registers.encoder.layer.1"),
    ("swin", "layers.0.blocks.0"),
    ("swin_torchvision", "features.3"),
    ("maxvit_torchvision", "blocks.0"),
]


@pytest.mark.parametrize(("name", "path"), LAYERS)
def test_a_replay_is_the_whole_model_with_that_layers_output_replaced(model_of, pictures, name, path):
    model, which = model_of(name), torch.tensor(WHICH)
    images = pictures(model, 3)
    with torch.no_grad(), preserve_state(model.module):
        replay = Replay(model, path)
        logits = replay.record(images)
        replay.verify(logits)
        kept = replay.tensor.clone()
        noise = torch.randn(len(WHICH), *kept.shape[1:], generator=torch.Generator().manual_seed(1))
        altered = kept[which] + noise
        found = replay.run(altered.clone(), which)
    torch.testing.assert_close(logits, with_output(model, path, images, lambda x: x))
    expected = with_output(model, path, images[which], lambda x: altered.clone())
    assert (expected - logits[which]).abs().max() > 1e-3  # the change matters
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(("name", "path"), [("residual", "blocks.1"), ("vit", "blocks.2.norm1"), ("swin", "norm")])
def test_a_replay_can_be_run_again_and_leaves_what_was_recorded(model_of, pictures, name, path):
    model, which = model_of(name), torch.tensor([1, 1])
    with torch.no_grad(), preserve_state(model.module):
        replay = Replay(model, path)
        logits = replay.record(pictures(model, 2))
        given = replay.tensor[which] * 1.5
        once = replay.run(given.clone(), which)
        assert torch.equal(replay.run(given.clone(), which), once)
        back = replay.run(replay.tensor.clone(), torch.arange(2))
    torch.testing.assert_close(back, logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "path"), [("residual", "blocks.1"), ("vit", "blocks.1"), ("hf_vit", "vit.layers.1")])
def test_the_graph_of_a_replay_starts_at_what_was_put_in(model_of, pictures, name, path):
    model = model_of(name)
    images = pictures(model, 2)
    with preserve_state(model.module):
        replay = Replay(model, path)
        with torch.no_grad():
            replay.record(images)
        given = replay.tensor.clone().requires_grad_(True)
        score = replay.run(given * 1.0, torch.arange(2))[:, 1].sum()
        found = torch.autograd.grad(score, given)[0]
    seen = {}

    def hook(module, args, output):
        first = output[0] if isinstance(output, tuple) else output
        seen["x"] = first.detach().clone().requires_grad_(True)
        return (seen["x"] * 1.0, *output[1:]) if isinstance(output, tuple) else seen["x"] * 1.0

    handle = model.module.get_submodule(path).register_forward_hook(hook)
    score = model.forward(images)[:, 1].sum()
    expected = torch.autograd.grad(score, seen["x"])[0]
    handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-4)


def test_what_finished_before_the_layer_does_not_run_again(model_of, pictures):
    model, ran = model_of("residual"), []
    with torch.no_grad(), preserve_state(model.module):
        replay = Replay(model, "blocks.1")
        replay.record(pictures(model, 2))
        plain = {path: module.forward for path, module in model.module.named_modules() if path}
        for path, module in model.module.named_modules():
            if isinstance(module, nn.Conv2d):
                module.forward = lambda x, path=path: ran.append(path) or plain[path](x)
        replay.run(replay.tensor.clone(), torch.arange(2))
    assert ran == ["blocks.2.first", "blocks.2.second"]


def test_the_modules_beside_the_way_are_those_that_may_have_run(model_of):
    model = model_of("residual").module
    assert modules_before(model, "blocks.1.second") == [
        "stem", "relu", "hidden", "head", "blocks.0", "blocks.2", "blocks.1.first", "blocks.1.norm", "blocks.1.relu",
    ]  # fmt: skip


@pytest.mark.parametrize("per", [1, 4])
def test_rows_are_those_of_the_images_asked_for_also_where_an_image_has_several(per):
    rows = torch.arange(3 * per * 2.0).reshape(3 * per, 2)
    which = torch.tensor([2, 0, 2])
    expected = torch.cat([rows[i * per : (i + 1) * per] for i in (2, 0, 2)])
    found = select_images((rows, None, [rows]), which, 3)
    assert torch.equal(found[0], expected) and found[1] is None and torch.equal(found[2][0], expected)
    same = select_images(rows, torch.tensor([1, 1]), 3)
    assert torch.equal(same, torch.cat([rows[per : 2 * per]] * 2))


def test_what_has_no_row_per_image_is_handed_on():
    table = torch.ones(7, 2)
    assert select_images(table, torch.tensor([0, 1]), 3) is table
    assert select_images("anything", torch.tensor([0]), 3) == "anything"


class Sideways(nn.Module):
    """Hands something on beside the modules' outputs: a part of the model that a replay cannot answer from memory."""

    def __init__(self):
        super().__init__()
        self.early, self.middle, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.head(self.middle(self.early(images)).mean((2, 3)) * (1 + self.calls))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.early, self.conv, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, images):
        return self.head(self.conv(self.conv(self.early(images))).mean((2, 3)))


def adapter_of(module):
    """A wrapped module that the probe would refuse."""
    return ModelAdapter(
        ModelSource("odd", module.eval(), Preprocessing((32, 32))), ModelStructure("cnn", None, outputs=5)
    )


def test_a_model_that_carries_something_past_its_modules_is_refused_by_value():
    model = adapter_of(seeded(Sideways))
    with torch.no_grad():
        replay = Replay(model, "middle")
        logits = replay.record(torch.rand(2, 3, 32, 32))
        with pytest.raises(CaptureError, match=r"what follows 'middle' in odd cannot run on its own: logits differ by"):
            replay.verify(logits)
    assert model.checked_recordings == set()


def test_a_layer_that_runs_twice_is_refused():
    with torch.no_grad(), pytest.raises(CaptureError, match="'conv' runs several times in a pass"):
        Replay(adapter_of(seeded(Twice)), "conv").record(torch.rand(2, 3, 32, 32))


def test_a_layer_that_did_not_run_is_refused(model_of):
    replay = Replay(model_of("residual"), "blocks.1")
    with pytest.raises(CaptureError, match=r"'blocks\.1' returned NoneType or did not run"):
        replay.tensor  # noqa: B018


def test_a_layer_behind_pytorchs_fast_path_is_replayed_all_the_same(pictures):
    """The encoder's fused kernel runs no module inside it, so that what is put in would be passed by unseen."""
    model = ac.wrap_model(seeded(TorchEncoder), size=(32, 32), name="torch_encoder")
    images = pictures(model)
    assert model.structure.feature_layer == "encoder.layers.1.norm1"
    assert_scores_without_each_channel(model, images)


def scores_by_slow_loop(model, images, target, path):
    """(B,C) scores of the whole model, one channel of the layer after the other set to 0 by a hook."""
    native = {}

    def note(x):
        native["x"] = x
        return x

    with_output(model, path, images, note)
    layout = find_layout(native["x"].shape, model.size, model.token_layouts)
    count = split_features(native["x"], layout).shape[1]
    found = []
    for channel in range(count):

        def without(x, channel=channel):
            features = split_features(x, layout).clone()
            features[:, channel] = 0
            return join_features(features, x, layout)

        found.append(with_output(model, path, images, without).gather(1, target[:, None])[:, 0])
    return torch.stack(found, dim=1)


def scores_by_head(model, images, target, layer=None):
    return supply(model, request("ablated_scores", layer=layer), images, target)


def assert_scores_without_each_channel(model, images):
    target = torch.arange(len(images)) % 5
    found, forward, backward = scores_by_head(model, images, target)
    expected = scores_by_slow_loop(model, images, target, model.structure.feature_layer)
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert (forward, backward) == (1.0, 0.0)


@pytest.mark.parametrize(
    "name", ["residual", "vit", "vit_mean", "vit_torchvision", "hf_vit", "cait", "maxvit_torchvision"]
)
def test_scores_without_each_channel_are_those_of_the_whole_model_with_that_channel_zeroed(model_of, pictures, name):
    model = model_of(name)
    assert not request("ablated_scores").has_linear_head(model)
    assert_scores_without_each_channel(model, pictures(model, 3))


@pytest.mark.parametrize("name", ["cnn", "swin", "swin_torchvision"])
def test_behind_pooling_and_a_linear_layer_three_ways_agree(model_of, pictures, monkeypatch, name):
    model = model_of(name)
    images, target = pictures(model, 3), torch.tensor([4, 0, 2])
    closed, forward, backward = scores_by_head(model, images, target)
    assert (forward, backward) == (0.0, 0.0)
    slow = scores_by_slow_loop(model, images, target, model.structure.feature_layer)
    monkeypatch.setattr(AblatedScores, "has_linear_head", lambda self, model: False)
    head, forward, _ = scores_by_head(model, images, target)
    assert forward == 1.0
    scale = 1e-5 * float(slow.abs().max())
    torch.testing.assert_close(closed, slow, atol=scale, rtol=0)
    torch.testing.assert_close(head, slow, atol=scale, rtol=0)


def test_a_rectified_feature_layer_loses_its_channel_behind_the_relu_or_before_it_alike(model_of, pictures):
    model = model_of("overwriting_cnn")
    images, target = pictures(model, 3), torch.tensor([4, 0, 2])
    assert model.structure.classifier.rectified
    closed = scores_by_head(model, images, target)[0]
    slow = scores_by_slow_loop(model, images, target, "features")
    torch.testing.assert_close(closed, slow, atol=1e-5 * float(slow.abs().max()), rtol=0)


def test_another_layer_than_the_pooled_one_goes_through_the_head(model_of, pictures):
    model = model_of("cnn")
    images, target = pictures(model, 2), torch.tensor([1, 3])
    found, forward, _ = scores_by_head(model, images, target, layer="2")
    assert forward == 1.0
    expected = scores_by_slow_loop(model, images, target, "2")
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_size_of_the_passes_does_not_change_the_scores(model_of, pictures, monkeypatch, chunk):
    model = model_of("vit")
    images, target = pictures(model, 2), torch.tensor([1, 3])
    expected = scores_by_head(model, images, target)[0]
    monkeypatch.setattr("attncompare.signals.ablated_scores.CHUNK", chunk)
    found = scores_by_head(model, images, target)[0]
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


class LooseNet(nn.Module):
    """Residual sums outside any module: += and an in-place ReLU go over what the last norm returned."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        self.conv, self.norm, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, images):
        x = self.relu(self.stem(images))
        y = self.norm(self.conv(x))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


def test_a_layer_that_is_added_to_before_it_is_averaged_is_no_classifiers_feature_layer(pictures):
    """Its own positive part is not what the mean is taken of, though the tensor holds that when the pass is over."""
    module = seeded(LooseNet)
    model = ac.wrap_model(module, size=(32, 32), name="loose")
    images, target = pictures(model, 2), torch.tensor([1, 3])
    layer = model.structure.feature_layer
    slow = scores_by_slow_loop(model, images, target, layer)
    found = scores_by_head(model, images, target)[0]
    torch.testing.assert_close(found, slow, atol=1e-5 * float(slow.abs().max()), rtol=0)
    if "classifier_weights" in model.supplies:  # CAM's mean and the bias are the logit, or it is no CAM
        cam = ac.make_explainer(model, "cam").explain(images, target).values.mean((1, 2))
        with torch.no_grad():
            logits = model.forward(images).gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(cam + module.head.bias.detach()[target], logits, atol=1e-5, rtol=0)
