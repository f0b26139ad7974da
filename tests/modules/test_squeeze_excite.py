"""Channel attention against the paper's equations and other libraries, and its insertion into CNNs of every source."""

import numpy as np
import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.errors import SpecError, UnknownNameError, UnsupportedModelError
from attncompare.modules import Gated, SqueezeExcite, insert

NETS = [
    ("demo/cnn", ["0", "1", "2"]),
    ("torchvision/resnet18@random", ["layer1", "layer2.0", "layer4"]),
    ("timm/mobilenetv3_small_050@random", ["blocks.0", "blocks.4", "blocks.5"]),
]


def layer(channels=12, reduction=4):
    torch.manual_seed(0)
    return SqueezeExcite(channels, reduction)


def test_it_is_the_papers_equations_line_by_line():
    made, x = layer().double(), torch.randn(2, 12, 5, 7, dtype=torch.float64)
    state = {name: value.detach().numpy() for name, value in made.state_dict().items()}
    for image, actual in zip(x.numpy(), made(x).detach().numpy(), strict=True):
        z = np.array([channel.sum() / channel.size for channel in image])
        hidden = np.maximum(0, state["reduce.weight"] @ z + state["reduce.bias"])
        gates = 1 / (1 + np.exp(-(state["expand.weight"] @ hidden + state["expand.bias"])))
        np.testing.assert_allclose(actual, image * gates[:, None, None], atol=1e-12)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_it_equals_the_layer_of_other_libraries_with_the_same_weights(library):
    made, x = layer(32, 16), torch.randn(2, 32, 6, 6)
    if library == "torchvision":
        from torchvision.ops import SqueezeExcitation

        other = SqueezeExcitation(32, 2)
    else:
        from timm.layers import SEModule

        other = SEModule(32, rd_channels=2)
    shaped = {"reduce": "fc1", "expand": "fc2"}
    state = {f"{shaped[name.split('.')[0]]}.{name.split('.')[1]}": v for name, v in made.state_dict().items()}
    other.load_state_dict({name: v[:, :, None, None] if v.ndim == 2 else v for name, v in state.items()})
    torch.testing.assert_close(made(x), other(x))


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(32, 16, 2), (64, 8, 8), (12, 16, 1), (1, 1, 1)])
def test_the_hidden_width_is_the_quotient_but_never_zero(channels, reduction, hidden):
    assert SqueezeExcite(channels, reduction).reduce.out_features == hidden


@pytest.mark.parametrize("given", [{"channels": 0}, {"channels": 8, "reduction": 0}, {"channels": 8, "reduction": 2.5}])
def test_sizes_that_are_no_sizes_are_refused(given):
    with pytest.raises(SpecError, match="must be a whole number from 1"):
        SqueezeExcite(**given)


@pytest.fixture(scope="module", params=NETS, ids=lambda net: net[0])
def inserted(request):
    """(the adapter of the plain model, the copy with channel attention, where it is)."""
    name, layers = request.param
    plain = ac.load_model(name)
    torch.manual_seed(0)
    return plain, insert(plain.module, layers, size=plain.size), layers


def test_the_given_model_is_left_and_the_copy_gated_where_asked(inserted):
    plain, net, layers = inserted
    assert not any(isinstance(part, Gated) for part in plain.module.modules())
    assert [path for path, part in net.named_modules() if isinstance(part, Gated)] == layers
    images = torch.rand(2, 3, *plain.size)
    with torch.no_grad():
        for path in layers:  # gates of one: as if nothing were there
            nn.init.zeros_(net.get_submodule(path).squeeze_excite.expand.weight)
            nn.init.constant_(net.get_submodule(path).squeeze_excite.expand.bias, 100.0)
        torch.testing.assert_close(net.eval()(images), plain.module(images))


def test_the_probe_finds_the_gates_and_the_methods_read_them(inserted, pictures):
    plain, _, layers = inserted
    torch.manual_seed(0)
    net = insert(plain.module, layers, size=plain.size)
    model = ac.wrap_model(net, size=plain.size, name="mine")
    found = [gate.layer for gate in model.structure.se_layers]
    assert [path for path in found if path.endswith("squeeze_excite")] == [f"{path}.squeeze_excite" for path in layers]
    images, seen = pictures(model), {}
    for path in layers:
        part = net.get_submodule(path).squeeze_excite
        part.sigmoid.register_forward_hook(lambda m, i, output, path=path: seen.update({f"{path} gates": output}))
        part.register_forward_pre_hook(lambda m, i, path=path: seen.update({path: i[0]}))
    with torch.no_grad():
        model.forward(images)
    for path in layers:
        number = found.index(f"{path}.squeeze_excite")
        requests = [(name, {"gate": number}) for name in ("channel_attention", "se_activation")]
        gates, weighted = (ac.make_explainer(model, name, **how).explain(images).values for name, how in requests)
        torch.testing.assert_close(gates, seen[f"{path} gates"])
        torch.testing.assert_close(weighted, (seen[path] * gates[:, :, None, None]).sum(1))


@pytest.mark.parametrize("method", ["cam", "grad_cam", "guided_backprop", "ablation_cam"])
def test_methods_run_on_a_model_with_inserted_gates(method, pictures):
    net = insert(ac.load_model("demo/cnn").module, ["0", "2"], size=(64, 64))
    model = ac.wrap_model(net, size=(64, 64), name="mine")
    values = ac.make_explainer(model, method).explain(pictures(model)).values
    assert bool(torch.isfinite(values).all())
    assert float(values.std()) > 0


def test_weights_load_after_building_and_inserting_again(tmp_path):
    from safetensors.torch import load_file, save_file

    build = lambda: insert(ac.load_model("demo/cnn@random").module, ["1"], reduction=8, size=(64, 64))  # noqa: E731
    first, second, x = build(), build(), torch.rand(1, 3, 64, 64)
    assert not torch.equal(first(x), second(x))  # the new layers are drawn anew
    save_file(first.state_dict(), tmp_path / "net.safetensors")
    second.load_state_dict(load_file(tmp_path / "net.safetensors"))
    torch.testing.assert_close(second(x), first(x))


def test_gates_are_learned():
    net = insert(ac.load_model("demo/cnn@random").module, ["1"], size=(64, 64)).train()
    nn.functional.cross_entropy(net(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
    assert float(net.get_submodule("1").squeeze_excite.expand.bias.grad.abs().sum()) > 0


def test_one_layer_inside_another_can_both_be_gated():
    net = insert(ac.load_model("demo/cnn").module, ["1", "1.0"], size=(64, 64))
    assert [path for path, part in net.named_modules() if isinstance(part, Gated)] == ["1", "1.module.0"]


def test_device_type_and_mode_are_those_of_the_model():
    net = insert(ac.load_model("demo/cnn").module.double().eval(), ["1"], size=(64, 64))
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert not any(part.training for part in net.modules())


class Shared(nn.Module):
    """One ReLU that runs twice, and a convolution used for its weights alone."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU()

    def forward(self, images):
        x = self.relu(self.one(images))
        return self.relu(nn.functional.conv2d(x, self.two.weight)).mean((2, 3))


class Direct(nn.Module):
    """Calls a block's forward, not the block."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.kept = [self.block]

    def forward(self, images):
        return self.kept[0](images).mean((2, 3))


@pytest.mark.parametrize(
    ("layers", "kind", "said"),
    [
        (["layer1x"], UnknownNameError, "unknown layer 'layer1x'; did you mean layer1"),
        ([""], UnknownNameError, "unknown layer ''"),
        ([], SpecError, "name at least one module"),
        ([3], SpecError, "3 is no module path"),
        (["layer1", "layer1"], SpecError, "'layer1' is listed twice"),
        (["fc"], UnsupportedModelError, r"'fc' \(Linear\) returns \(2, 1000\).*needs a feature map"),
        (["avgpool"], UnsupportedModelError, r"'avgpool' \(AdaptiveAvgPool2d\) returns \(2, 512, 1, 1\)"),
        (["layer1.0.relu"], UnsupportedModelError, "runs 2 times in a pass; name a module that runs once"),
    ],
)
def test_places_that_do_not_fit_are_refused(layers, kind, said):
    with pytest.raises(kind, match=said):
        insert(resnet(), layers, size=(64, 64))


def resnet():
    from torchvision.models import resnet18

    return resnet18()


def test_the_same_place_cannot_be_taken_twice():
    net = insert(resnet(), ["layer1"], size=(64, 64))
    for path in ("layer1", "layer1.module", "layer1.squeeze_excite"):
        with pytest.raises(SpecError, match=f"'{path}' has squeeze-and-excitation inserted already"):
            insert(net, [path], size=(64, 64))
    assert len([1 for part in insert(net, ["layer2"], size=(64, 64)).modules() if isinstance(part, Gated)]) == 2


@pytest.mark.parametrize(
    ("model", "layer", "said"),
    [
        (Shared(), "two", r"'two' \(Conv2d\) runs 0 times"),
        (Shared(), "relu", r"'relu' \(ReLU\) runs 2 times"),
        (Direct(), "block", "does not call it as a module"),
        (nn.Sequential(nn.Linear(7, 2)), "0", "does not run on images of 32 x 32; give size="),
    ],
)
def test_models_that_go_past_the_place_are_refused(model, layer, said):
    with pytest.raises(UnsupportedModelError, match=said):
        insert(model, [layer], size=(32, 32))


def test_token_layers_are_refused(build):
    with pytest.raises(UnsupportedModelError, match=r"returns \(2, 16, 16, 16\)|returns \(2, 17, 32\)"):
        insert(build("vit"), ["blocks.0"], size=(32, 32))


def test_an_adapter_is_told_from_its_module():
    with pytest.raises(UnsupportedModelError, match=r"ModelAdapter is not an nn\.Module; pass its \.module"):
        insert(ac.load_model("demo/cnn"), ["0"])


def test_it_is_public():
    assert ac.modules.SqueezeExcite is SqueezeExcite
    assert ac.modules.insert is insert
