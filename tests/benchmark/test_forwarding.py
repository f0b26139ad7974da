import copy

import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.benchmark.forwarding import fast_forward, suitable_way, way_in_use
from attncompare.tuning import Tuning, tune


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
