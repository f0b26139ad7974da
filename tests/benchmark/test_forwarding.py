import copy

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.benchmark import forwarding, onednn
from attncompare.benchmark.forwarding import fast_forward, suitable_way, way_in_use
from attncompare.benchmark.onednn import OneDNNLinear, onednn_is_faster
from attncompare.tuning import Tuning, tune

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch was built without oneDNN's linear layer",
)


class Flattened(nn.Module):
    """As many tutorials write it: `view` cannot flatten features whose channels lie innermost."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 5, stride=4), nn.Conv2d(4 * 7 * 7, 3, 1)

    def forward(self, x):
        features = self.features(x).relu()
        return self.head(features.view(len(x), 4 * 7 * 7, 1, 1)).flatten(1)


class Grouped(Flattened):
    """As attention over groups of channels is written: of one image alone the view fits both layouts."""

    def forward(self, x):
        features = self.features(x).relu()
        groups = features.view(len(x) * 2, -1, *features.shape[2:])
        return (groups * groups.mean(dim=1, keepdim=True)).reshape(len(x), 4, -1).mean(dim=2)


class Blurred(Flattened):
    """Reads the memory of a batch as that of the plain layout, without an error."""

    def forward(self, x):
        n, c, h, w = x.shape
        planes = x.as_strided((n * c, 1, h, w), (x.stride(1), 0, x.stride(2), x.stride(3)))
        return self.features(nn.functional.avg_pool2d(planes, 3, 1, 1).reshape(n, c, h, w)).mean(dim=(2, 3))


class LargeLogits(Flattened):
    """What the layout moves is small beside the logits and large beside their gaps."""

    def forward(self, x):
        moved = torch.tensor([0.02, 0, 0, 0]) * (x.stride(1) == 1)
        return 1e4 + self.features(x).mean(dim=(2, 3)) + moved


class ReadsStrides(nn.Conv2d):
    """Answers to the layout itself."""

    def __init__(self):
        super().__init__(3, 3, 1)

    def forward(self, x):
        return super().forward(x).mean(dim=(2, 3)) + x.stride(1)


class Roomy(Flattened):
    """Would take the layout; `room` is how many images it has memory for."""

    room = 1000

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.features(x).mean(dim=(2, 3))


class Tokens(nn.Module):
    """Linear layers only; those of 3 x 64 tokens are worth oneDNN's preparation, that of the head is not."""

    def __init__(self, width=256):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(48, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x):
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
        return self.head(self.mix(self.embed(patches)).relu().mean(dim=1))


class Chaotic(Tokens):
    """Blows up last digits, as no trained network does."""

    def forward(self, x):
        return (super().forward(x) * 1e6).sin()


def wrapped(module):
    torch.manual_seed(0)
    return ac.wrap_model(module, size=(32, 32))


@pytest.fixture(autouse=True)
def as_before():
    yield
    tune(Tuning())


def layouts_seen(model):
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        outputs = fast_forward(model)(torch.rand(2, 3, *model.size, generator=torch.Generator().manual_seed(1)))
    hook.remove()
    return seen, outputs


@pytest.mark.parametrize("name", ["demo/cnn", "demo/vit", "torchvision/squeezenet1_1@random"])
def test_convolutional_networks_are_forwarded_channels_last_and_return_the_same(name):
    model = ac.load_model(name)
    suitable_way(model)  # its trial passes are not of interest
    seen, outputs = layouts_seen(model)
    assert seen == [name != "demo/vit"]
    tune(Tuning(layout="contiguous"))
    seen, exact = layouts_seen(model)
    assert seen == [False] and outputs.softmax(1) == pytest.approx(exact.softmax(1), abs=1e-6)
    tune(Tuning(layout="channels_last"))
    assert layouts_seen(model)[0] == [True]


@pytest.mark.parametrize("network", [Flattened, Grouped, Blurred, LargeLogits, ReadsStrides])
def test_a_network_that_minds_the_layout_keeps_torchs(network):
    model = wrapped(network())
    assert suitable_way(model) == "contiguous"
    assert layouts_seen(model)[0] == [False]


def scored(model, room=1000):
    """Deletion of a map; `room` is for scoring alone, which the map is made before."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = ac.make_explainer(model, "saliency").explain(image)
    model.model.room = room
    (record,) = ac.score(model, image, found, metrics=["deletion"])
    assert record.status == "ok" and 0 < record.value < 1
    return record.value


@pytest.mark.parametrize("network", [Flattened, Grouped])
def test_a_network_that_minds_the_layout_is_scored(network):
    scored(wrapped(network()))


def test_a_network_without_room_for_the_trial_keeps_torchs_layout_and_is_scored():
    roomy, narrow = wrapped(Roomy()), wrapped(Roomy())
    assert way_in_use(roomy) is None  # nobody has asked yet
    assert scored(narrow, room=2) == pytest.approx(scored(roomy), abs=1e-6)
    assert way_in_use(roomy) == "channels_last" and way_in_use(narrow) == "contiguous"


def test_the_way_is_decided_once_and_not_copied_with_the_model():
    model = ac.load_model("demo/cnn")
    assert len(layouts_seen(model)[0]) == 3 and len(layouts_seen(model)[0]) == 1
    other = copy.deepcopy(model)
    assert len(layouts_seen(other)[0]) == 3 and suitable_way(other) == "channels_last"


def test_a_network_whose_head_was_replaced_is_asked_again():
    class Body(Flattened):
        def forward(self, x):
            return self.last(self.features(x).relu())

    class Views(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)[:, :4]

    body = Body()
    body.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = wrapped(body)
    scored(model)
    assert way_in_use(model) == "channels_last"
    body.last = Views()
    scored(model)
    assert way_in_use(model) == "contiguous"


@pytest.fixture
def slow_mkl(monkeypatch):
    """A processor on which oneDNN is asked for, whatever this one is."""
    monkeypatch.setattr(forwarding, "onednn_is_faster", lambda: True)


@pytest.fixture
def products(monkeypatch):
    """The shapes (inputs, outputs) of the layers that oneDNN computed."""
    seen, plain = [], onednn._linear

    def counting(input, weight, bias=None):
        seen.append(tuple(weight.shape))
        return plain(input, weight, bias)

    monkeypatch.setattr(onednn, "_linear", counting)
    return seen


@needs_onednn
def test_large_linear_layers_are_onednns_where_a_processor_asks_for_it(slow_mkl, products):
    model = wrapped(Tokens())
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert way_in_use(model) is None and suitable_way(model) == "onednn" == way_in_use(model)
    products.clear()
    with torch.no_grad():
        found = fast_forward(model)(images)
        assert products == [(256, 256)]
        exact = model.forward(images)
        tune(Tuning(layout="contiguous"))
        assert torch.equal(fast_forward(model)(images), exact) and way_in_use(model) == "contiguous"
    assert found == pytest.approx(exact, abs=1e-6) and len(products) == 1


@needs_onednn
def test_a_score_by_onednn_is_the_one_by_torch_and_says_so(slow_mkl, products, tmp_path):
    model = ac.load_model("timm/vit_tiny_patch16_224@random")
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found = ac.make_explainer(model, "saliency").explain(image)
    spec = {"metrics": ["deletion", "insertion"], "protocol": "grid14"}
    ours = ac.score(model, image, found, **spec)
    assert len(products) > 100 and way_in_use(model) == "onednn"
    tune(Tuning(layout="contiguous"))
    assert [one.value for one in ours] == pytest.approx(
        [one.value for one in ac.score(model, image, found, **spec)], abs=1e-6
    )


@needs_onednn
def test_a_network_that_onednn_would_change_keeps_torchs_layers(slow_mkl):
    assert suitable_way(wrapped(Chaotic())) == "contiguous"


@needs_onednn
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    "change",
    ["gradients", "autocast", "float64", "small", "a subclass", "sparse weights", "no rows"],
)
def test_only_large_plain_float32_products_without_gradients_are_onednns(change, products):
    class Other(torch.Tensor):
        pass

    torch.manual_seed(0)
    x, weight, bias = torch.rand(200, 200), torch.rand(200, 200), torch.rand(200)
    if change == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    if change in ("small", "no rows"):
        x = x[: 100 if change == "small" else 0]
    if change == "a subclass":
        weight = weight.as_subclass(Other)
    if change == "sparse weights":
        weight = weight.to_sparse_csr()
    exact = torch.nn.functional.linear(x, weight, bias) if change != "autocast" else None
    with (
        torch.set_grad_enabled(change == "gradients"),
        OneDNNLinear(),
        torch.autocast("cpu", enabled=change == "autocast"),
    ):
        found = torch.nn.functional.linear(x, weight, bias)
    assert not products
    if exact is None:
        assert found.dtype == torch.bfloat16
    else:
        assert torch.equal(found.as_subclass(torch.Tensor), exact.as_subclass(torch.Tensor))


@needs_onednn
@pytest.mark.parametrize("shape", [(512, 128), (2, 256, 128), (2, 4, 64, 128), (1, 64, 8, 128)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_onednns_product_is_torchs_for_any_batch(shape, with_bias, products):
    torch.manual_seed(0)
    x, layer = torch.rand(*shape), nn.Linear(128, 96, bias=with_bias)
    with torch.no_grad():
        exact = layer(x)
        with OneDNNLinear():
            found, keyword = layer(x), torch.nn.functional.linear(input=x, weight=layer.weight, bias=layer.bias)
            turned = torch.nn.functional.linear(x.flip(-1), layer.weight.t().contiguous().t().flip(-1), layer.bias)
    assert products == [(96, 128)] * 3 and found.shape == exact.shape
    for one in (found, keyword, turned):
        assert one == pytest.approx(exact, abs=1e-5)


def test_the_processors_maker_decides(monkeypatch, tmp_path):
    def decided():
        onednn_is_faster.cache_clear()
        return onednn_is_faster()

    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(onednn, "Path", lambda name: file)
    for maker, asked in (("AuthenticAMD", both), ("GenuineIntel", False)):
        file.write_text(f"processor\t: 0\nvendor_id\t: {maker}\nmodel name\t: x: y\n")
        assert decided() == asked
    file.write_text("CPU implementer\t: 0x41\n")  # an ARM names no vendor
    assert not decided()
    file.unlink()
    monkeypatch.setattr(onednn.platform, "processor", lambda: "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD")
    assert decided() == both
    onednn_is_faster.cache_clear()
