import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import attncompare as ac
from attncompare.benchmark import forwarding, onednn
from attncompare.benchmark.forwarding import fast_forward, suitable_way, way_in_use
from attncompare.benchmark.onednn import OneDNNLinear, has_onednn_linear, onednn_is_faster
from attncompare.benchmark.run import run_benchmark
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.tuning import Tuning, tune

needs_onednn = pytest.mark.skipif(not has_onednn_linear(), reason="this torch was built without oneDNN's linear layer")


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
    hook = model.module.register_forward_pre_hook(
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
    model.module.room = room
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
    """The shapes (outputs, inputs) of the layers that oneDNN computed."""
    seen, plain = [], onednn._product

    def counting(input, weight, bias):
        seen.append(tuple(weight.shape))
        return plain(input, weight, bias)

    monkeypatch.setattr(onednn, "_product", counting)
    return seen


@needs_onednn
def test_large_linear_layers_are_onednns_where_a_processor_asks_for_it(slow_mkl, products):
    model = wrapped(Tokens())
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert way_in_use(model) is None and suitable_way(model) == "onednn" == way_in_use(model)
    assert products == [(256, 48), (256, 256), (4, 256)]  # the trial is of every layer
    products.clear()
    with torch.no_grad():
        found = fast_forward(model)(images)
        assert products == [(256, 256)]
        exact = model.forward(images)
        tune(Tuning(layout="contiguous"))
        assert torch.equal(fast_forward(model)(images), exact) and way_in_use(model) == "contiguous"
    assert found == pytest.approx(exact, abs=1e-6) and len(products) == 1


@needs_onednn
@pytest.mark.parametrize(("dtype", "label"), [("float32", "torch onednn"), ("bf16", "torch contiguous bf16")])
def test_scores_by_onednn_are_those_by_torch_and_the_records_say_so(slow_mkl, products, tmp_path, dtype, label):
    spec = BenchmarkSpec(
        models=("timm/vit_tiny_patch16_224@random",), methods=("center_map",), metrics=("deletion", "insertion"),
        protocol="grid14", data="shapes", limit=1, timing=False, dtype=dtype,
    )  # fmt: skip
    ours = run_benchmark(spec, tmp_path / "ours").records()
    assert set(ours.scored_by) == {label} and len(products) > 100
    tune(Tuning(layout="contiguous"))
    torchs = run_benchmark(spec, tmp_path / "torch").records()
    assert set(torchs.scored_by) == {label.replace("onednn", "contiguous")}
    assert list(ours.status) == ["ok"] * 3 and list(ours.key) == list(torchs.key)
    assert ours.value.to_numpy() == pytest.approx(torchs.value.to_numpy(), abs=1e-6 if dtype == "float32" else 1e-9)


class Narrow(Tokens):
    """No product of three images is worth it."""

    def __init__(self):
        super().__init__(width=64)


class Fused(Tokens):
    """Torch has a pass of its own for these layers, from the first to the last operation."""

    def __init__(self):
        super().__init__()
        self.mix = nn.TransformerEncoderLayer(256, 4, batch_first=True)


@needs_onednn
@pytest.mark.parametrize("network", [Chaotic, Narrow, Fused])
def test_a_network_that_onednn_would_change_or_not_speed_up_keeps_torchs_layers(slow_mkl, network):
    assert suitable_way(wrapped(network())) == "contiguous"


@needs_onednn
def test_a_layer_that_is_large_enough_only_in_larger_batches_was_in_the_trial(slow_mkl, monkeypatch):
    """What the operator gets wrong in such a layer is seen before it is used for a score."""
    model, plain = wrapped(Tokens()), onednn._product

    def wrong(input, weight, bias):
        return plain(input, weight, bias) + (weight.shape == (256, 48))  # 3 x 64 x 256 x 48 multiplications: too few

    monkeypatch.setattr(onednn, "_product", wrong)
    assert suitable_way(model) == "contiguous"


def odd(change):
    """Arguments of F.linear."""
    x, weight, bias = torch.rand(200, 200), torch.rand(200, 200), torch.rand(400)[:200]
    if change == "float64":
        return x.double(), weight.double(), bias.double()
    if change in ("small", "no rows"):
        return x[: 100 if change == "small" else 0], weight, bias
    if change == "a subclass":
        return x, weight.as_subclass(Other), bias
    if change == "sparse weights":
        return x, weight.to_sparse_csr(), bias
    if change == "one output":
        return x, weight[0], None
    biases = {
        "every other bias": torch.rand(400)[::2],
        "one bias for all": torch.rand(1).expand(200),
        "no dimension": torch.tensor(2.0),
        "one bias": torch.rand(1),
        "a bias for each row": torch.rand(200, 1),
        "a bias for each cell": torch.rand(200, 200),
    }
    return x, weight, biases.get(change, bias)


class Other(torch.Tensor):
    """A class of its own, as quantized weights have."""


@needs_onednn
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    "change",
    [
        "gradients", "float64", "small", "a subclass", "sparse weights", "no rows", "every other bias", "one bias for all",
        "no dimension", "one bias", "a bias for each row", "a bias for each cell", "one output",
    ],
)  # fmt: skip
def test_what_the_operator_cannot_take_is_torchs(change, products):
    torch.manual_seed(0)
    given = odd(change)
    exact = nn.functional.linear(*given)
    with torch.set_grad_enabled(change == "gradients"), OneDNNLinear() as mode:
        found = nn.functional.linear(*given)
    assert not products and mode.largest == 0
    assert torch.equal(found.as_subclass(torch.Tensor), exact.as_subclass(torch.Tensor))


@needs_onednn
@pytest.mark.parametrize(
    "shapes", [((8, 100), (64, 200), (64,)), ((200, 200), (200, 200), (300,)), ((200, 200), (), None)]
)
def test_shapes_that_do_not_fit_have_torchs_error(shapes):
    given = [None if shape is None else torch.rand(shape) for shape in shapes]
    with torch.no_grad(), pytest.raises(RuntimeError) as torchs:
        nn.functional.linear(*given)
    with torch.no_grad(), OneDNNLinear(smallest=0), pytest.raises(RuntimeError) as ours:
        nn.functional.linear(*given)
    assert str(ours.value) == str(torchs.value)


@needs_onednn
def test_what_torch_does_more_than_compute_is_torchs(products):
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 256), torch.rand(64, 256)
    others = {
        "jvp": lambda: torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1],
        "vmap": lambda: torch.func.vmap(layer)(x.expand(3, 64, 256)),
        "biases": lambda: torch.func.vmap(lambda b: nn.functional.linear(x, layer.weight, b))(torch.eye(256)[:3]),
        "trace": lambda: torch.jit.trace(layer, x, check_trace=False)(x),
        "autocast": lambda: torch.autocast("cpu")(layer)(x).float(),
    }

    def dual():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    with torch.no_grad():
        for name, run in {**others, "dual": dual}.items():
            exact = run()
            with OneDNNLinear():
                assert torch.equal(run(), exact), name
        assert not products
        with OneDNNLinear():
            layer(x)
        assert products == [(256, 256)]


@needs_onednn
def test_what_onednn_refuses_is_torchs(monkeypatch):
    def refuse(input, weight, bias):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(onednn, "_product", refuse)
    layer, x = nn.Linear(256, 256), torch.rand(64, 256)
    with torch.no_grad(), OneDNNLinear():
        found = layer(x)
    assert torch.equal(found, layer(x))


@needs_onednn
@pytest.mark.parametrize("shape", [(512, 128), (2, 256, 128), (2, 4, 64, 128), (1, 64, 8, 128)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_onednns_product_is_torchs_for_any_batch(shape, with_bias, products):
    torch.manual_seed(0)
    x, layer = torch.rand(*shape), nn.Linear(128, 96, bias=with_bias)
    wide = torch.rand(128, 300)[:, 50:146]
    with torch.no_grad():
        exact, of_wide = layer(x), nn.functional.linear(x.flip(-1), wide.t())
        with OneDNNLinear():
            found, keyword = layer(x), nn.functional.linear(input=x, weight=layer.weight, bias=layer.bias)
            strided = nn.functional.linear(x.flip(-1), wide.t())
    assert products == [(96, 128)] * 3 and found.shape == exact.shape
    assert found == pytest.approx(exact, abs=1e-5) and torch.equal(found, keyword)
    assert strided == pytest.approx(of_wide, abs=1e-4)


@pytest.fixture
def asked_anew():
    onednn_is_faster.cache_clear()
    yield
    onednn_is_faster.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "slow"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x: y\n", "", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "", False),
        ("CPU implementer\t: 0x41\n", "", False),  # an ARM names no vendor
        (None, "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD", True),
        (None, "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel", False),
        (None, "arm", False),
    ],
)
def test_the_processors_maker_decides(monkeypatch, tmp_path, asked_anew, cpuinfo, processor, slow):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(onednn, "Path", lambda name: file)
    monkeypatch.setattr(onednn.platform, "processor", lambda: processor)
    assert onednn_is_faster() == (slow and has_onednn_linear() and torch.backends.mkl.is_available())
