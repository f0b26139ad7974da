"""Modules, checkpoints and model names of every wrong kind."""

import os
import struct
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

import attncompare as ac
from attncompare.errors import AttnCompareError, CaptureError, SpecError, UnknownNameError, UnsupportedModelError

SIDE = 16


def net(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    trunk = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*trunk, nn.Linear(4, outputs))


class Altered(nn.Module):
    """A small network whose output is altered."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, images):
        return self.change(self.net(images))


def with_weights(value: float) -> nn.Module:
    module = net()
    nn.init.constant_(module[0].weight, value)
    return module


def with_statistics(value: float, name: str) -> nn.Module:
    norm = nn.BatchNorm2d(4)
    getattr(norm, name).fill_(value)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def no_message(logits):
    raise AssertionError


def two_lines(logits):
    raise RuntimeError("the first line\nthe second")


def inside_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


# what is wrapped, options of wrap_model, and words of the refusal
WRONG = {
    "no module": (lambda: "resnet50", {}, "'resnet50' is not an nn.Module"),
    "nothing": (lambda: None, {}, "None is not an nn.Module"),
    "a function": (lambda: torch.relu, {}, "is not an nn.Module"),
    "a class": (lambda: nn.Linear, {}, "is not an nn.Module"),
    "size a number": (net, {"size": 224}, r"size must be \(height, width\)"),
    "size of one": (net, {"size": (16,)}, r"size must be \(height, width\)"),
    "size zero": (net, {"size": (0, 16)}, r"size must be .*not \(0, 16\)"),
    "size a fraction": (net, {"size": (16.0, 16.0)}, "size must be"),
    "size true": (net, {"size": (True, True)}, "size must be"),
    "mean of 0 to 255": (net, {"mean": (124, 117, 104)}, r"mean \(124.0, 117.0, 104.0\).*mean in \[0, 1\]"),
    "mean nan": (net, {"mean": (float("nan"),) * 3}, r"mean in \[0, 1\]"),
    "mean of two": (net, {"mean": (0.5, 0.5)}, "mean must be three numbers"),
    "mean a number": (net, {"mean": 0.5}, "mean must be three numbers"),
    "std zero": (net, {"std": (0, 0, 0)}, "std above 0"),
    "std negative": (net, {"std": (1, -1, 1)}, "std above 0"),
    "std infinite": (net, {"std": (float("inf"),) * 3}, "std above 0"),
    "name a number": (net, {"name": 3}, "name must be text"),
    "one class name": (net, {"class_names": ["cat"]}, "1 class_names for a model of 4 outputs"),
    "class names in one text": (net, {"class_names": "abcd"}, "class_names must be a list"),
    "class names by number": (net, {"class_names": {0: "cat"}}, "class_names must be a list"),
    "unknown option": (net, {"layer": "1"}, r"does not know \['layer'\]"),
    "layer a number": (net, {"feature_layer": 1}, "feature_layer must be the path"),
    "layer that is not there": (net, {"feature_layer": "9"}, "has no layer '9'"),
    "attention in one text": (net, {"attention_blocks": "blocks.0"}, "attention_blocks must be a tuple"),
    "stages a number": (net, {"stages": 3}, "stages must be a tuple"),
    "family": (net, {"family": "rnn"}, "family must be one of cnn, vit, hierarchical"),
    "weights nan": (lambda: with_weights(float("nan")), {}, r"non-finite weights in 0\.weight"),
    "weights infinite": (lambda: with_weights(float("inf")), {}, r"non-finite weights in 0\.weight"),
    "statistics nan": (
        lambda: with_statistics(float("nan"), "running_mean"),
        {},
        r"non-finite weights in 1\.running_mean",
    ),
    "half": (lambda: net().half(), {}, r"torch.float16: call .float\(\)"),
    "double": (lambda: net().double(), {}, r"torch.float64: call .float\(\)"),
    "lazy layers": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        {},
        "lazy layers .* run it once",
    ),
    "inference mode": (inside_inference_mode, {}, "made under torch.inference_mode: build it outside"),
    "one channel in": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), {}, "expected input.*3 channels"),
    "no channels": (lambda: nn.Sequential(nn.Conv2d(3, 0, 3), nn.Flatten()), {}, "does not run on"),
    "no layers": (nn.Sequential, {}, r"returned shape \(2, 3, 16, 16\)"),
    "raises two lines": (lambda: Altered(two_lines), {}, r"the first line \(RuntimeError\)$"),
    "raises nothing to read": (lambda: Altered(no_message), {}, r"no message \(AssertionError\)"),
    "two inputs": (lambda: nn.Bilinear(3, 3, 4), {}, "missing 1 required positional argument"),
    "chance": (lambda: Altered(lambda y: torch.dropout(y, 0.5, True)), {}, "draws random numbers"),
    "mixes a batch": (lambda: Altered(lambda y: y - y.mean(0) + y[1:].sum()), {}, "mixes the images"),
    "(B,)": (lambda: Altered(lambda y: y[:, 0]), {}, r"returned shape \(2,\); \(B, K\)"),
    "(B, K, 1)": (lambda: Altered(lambda y: y[:, :, None]), {}, r"returned shape \(2, 4, 1\)"),
    "(B, 0)": (lambda: Altered(lambda y: y[:, :0]), {}, r"returned shape \(2, 0\)"),
    "a row for all": (lambda: Altered(lambda y: y[:1]), {}, "returned 1 rows for 2 images"),
    "a number": (lambda: Altered(lambda y: y.sum()), {}, r"returned shape \(\)"),
    "nothing returned": (lambda: Altered(lambda y: None), {}, "returned NoneType"),
    "tuple": (lambda: Altered(lambda y: (y, y)), {}, r"returned tuple; a \(B, K\) tensor"),
    "dict without logits": (lambda: Altered(lambda y: {"out": y}), {}, "returned dict"),
    "array": (lambda: Altered(lambda y: y.detach().numpy()), {}, "returned ndarray"),
    "integers": (lambda: Altered(lambda y: y.long()), {}, "returned torch.int64; logits are floating point"),
    "truth values": (lambda: Altered(lambda y: y > 0), {}, "returned torch.bool"),
    "complex": (lambda: Altered(lambda y: y.to(torch.complex64)), {}, "returned torch.complex64"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_module_that_cannot_be_wrapped_is_refused_in_one_line(kind, recwarn):
    make, options, words = WRONG[kind]
    with pytest.raises((UnsupportedModelError, UnknownNameError), match=words) as caught:
        ac.wrap_model(make(), **{"size": (SIDE, SIDE)} | options)
    assert "\n" not in str(caught.value)
    assert not [warning for warning in recwarn if "Casting complex" in str(warning.message)]


# modules that can be wrapped but not explained by gradients
UNEXPLAINED = {
    "not finite": (lambda: Altered(lambda y: y * float("nan")), "non-finite logits"),
    "infinite": (lambda: Altered(lambda y: y / 0), "non-finite logits"),
    "negative variance": (lambda: with_statistics(-1.0, "running_var"), "non-finite logits"),
    "no graph": (lambda: Altered(lambda y: y.detach()), "no gradient of the score reaches"),
    "constant": (lambda: Altered(lambda y: y * 0), "zero at rounding level"),
}


@pytest.mark.parametrize("kind", UNEXPLAINED)
def test_a_module_without_a_gradient_is_refused_and_not_drawn(kind):
    make, words = UNEXPLAINED[kind]
    model = ac.wrap_model(make(), size=(SIDE, SIDE))
    with pytest.raises(CaptureError, match=words):
        ac.make_explainer(model, "saliency").explain(torch.rand(2, 3, SIDE, SIDE))


RIGHT = {
    "training": lambda: net().train(),
    "frozen": lambda: net().requires_grad_(False),
    "logits in a dict": lambda: Altered(lambda y: {"logits": y}),
    "parallel": lambda: nn.DataParallel(net()),
    "bytes in a buffer": lambda: nn.Sequential(OrderedDict(net=net(), last=nn.Identity())),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_an_unusual_module_has_the_map_of_the_plain_one(kind):
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plain = ac.make_explainer(ac.wrap_model(net(), size=(SIDE, SIDE)), "saliency").explain(images)
    module = RIGHT[kind]()
    modes = [(part.training, [p.requires_grad for p in part.parameters()]) for part in module.modules()]
    found = ac.make_explainer(ac.wrap_model(module, size=(SIDE, SIDE)), "saliency").explain(images)
    torch.testing.assert_close(found.values, plain.values)
    assert modes == [(part.training, [p.requires_grad for p in part.parameters()]) for part in module.modules()]


@pytest.fixture(scope="module")
def state():
    return {name: value.clone() for name, value in ac.load_model("demo/cnn@random").module.state_dict().items()}


class Payload:
    """Code in a pickle, which must never run."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def changed(state, **values):
    return {**state, **{name.replace("_of_", "."): value for name, value in values.items()}}


# file name, what is saved (a function of the right state: a mapping for a file, or its bytes), and words of the refusal
CHECKPOINTS = {
    "half a file": ("half.safetensors", lambda s: save(s)[:5000], "cannot be loaded"),
    "half a head": ("head.safetensors", lambda s: save(s)[:20], "cannot be loaded"),
    "endless head": ("endless.safetensors", lambda s: struct.pack("<Q", 2**60) + b"{}", "cannot be loaded"),
    "nothing": ("nothing.pth", lambda s: b"", "cannot be loaded"),
    "no zip": ("junk.pth", lambda s: b"PK\x03\x04" + bytes(99), "cannot be loaded"),
    "code": ("code.pth", lambda s: changed(s, more=Payload()), "holds more than tensors, which could run code"),
    "a whole model": ("model.pth", lambda s: net(), "holds more than tensors"),
    "a list": ("list.pth", lambda s: [1, 2], "it holds a list; a mapping"),
    "wrapped": (
        "wrapped.pth",
        lambda s: {"state_dict": s, "epoch": 3},
        "2 tensors are not the model's: state_dict, epoch",
    ),
    "other names": (
        "names.safetensors",
        lambda s: {f"module.{k}": v for k, v in s.items()},
        "not the model's: module.0",
    ),
    "one too few": (
        "few.safetensors",
        lambda s: {k: v for k, v in s.items() if k != "5.bias"},
        "1 tensors .*missing: 5.bias",
    ),
    "one too many": ("many.safetensors", lambda s: changed(s, zz=torch.zeros(1)), "1 tensors are not the model's: zz"),
    "other classes": (
        "classes.safetensors",
        lambda s: changed(s, **{"5_of_weight": torch.zeros(10, 128), "5_of_bias": torch.zeros(10)}),
        r"5.bias is \(10,\), in the model \(8,\); 5.weight is \(10, 128\), in the model \(8, 128\)",
    ),
    "nan": (
        "nan.safetensors",
        lambda s: changed(s, **{"5_of_bias": torch.full((8,), torch.nan)}),
        "non-finite weights in 5.bias",
    ),
    "integers": (
        "int8.safetensors",
        lambda s: changed(s, **{"5_of_bias": torch.zeros(8, dtype=torch.int8)}),
        "5.bias is torch.int8, in the model torch.float32",
    ),
    "complex": (
        "c.pth",
        lambda s: changed(s, **{"5_of_bias": torch.zeros(8, dtype=torch.complex64)}),
        "5.bias is torch.complex64",
    ),
    "text for a tensor": ("text.pth", lambda s: changed(s, **{"5_of_bias": "zeros"}), "5.bias is a str and no tensor"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_with_what_differs(tmp_path, state, kind):
    name, make, words = CHECKPOINTS[kind]
    content, path = make(state), tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path) if name.endswith("safetensors") else torch.save(content, path)
    with pytest.raises(AttnCompareError, match=words) as caught:
        ac.load_model(f"demo/cnn@{path}")
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not Payload.ran


def test_a_pipe_or_folder_as_checkpoint_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", tmp_path):
        with pytest.raises(AttnCompareError, match="it is no file"):
            ac.load_model(f"demo/cnn@{path}")


def test_a_checkpoint_of_half_precision_is_read_as_float32(tmp_path, state):
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.safetensors")
    loaded = ac.load_model(f"demo/cnn@{tmp_path / 'half.safetensors'}").module.state_dict()
    assert loaded["5.bias"].dtype == torch.float32
    torch.testing.assert_close(loaded["5.bias"], state["5.bias"], rtol=1e-3, atol=1e-4)


NAMES = {
    "nothing": (None, "is not a name"),
    "a module": (nn.ReLU(), "goes to wrap_model"),
    "nothing behind the @": ("demo/cnn@", "behind the @ stands random or a checkpoint file"),
    "another word behind the @": ("demo/cnn@Random", "checkpoint Random does not exist"),
    "a checkpoint of 300 characters": (f"demo/cnn@{'a' * 300}.pth", "does not exist"),
    "a checkpoint with nul": ("demo/cnn@a\0.pth", r"a\\x00.pth does not exist"),
    "300 characters": ("demo/" + "a" * 300, "unknown model"),
    "a folder of 300 characters": ("hf/" + "a" * 300, "no such folder"),
    "a folder with nul": ("hf/a\0b", r"hf/a\\x00b: no such folder"),
    "a way out": ("hf/../../etc/passwd", "no such folder"),
    "a way out of timm": ("timm/../../x@random", "unknown model"),
    "a hub behind timm": ("timm/hf_hub:someone/model@random", "unknown model"),
    "an attribute": ("torchvision/__class__@random", "unknown model"),
    "html": ("demo/<img src=x onerror=alert(1)>", "unknown model"),
    "line breaks": ("demo/\n\x1b[2J", r"unknown model 'demo/\\n\\x1b"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_model_name_that_is_none_is_refused_in_one_line(kind):
    name, words = NAMES[kind]
    with pytest.raises(AttnCompareError, match=words) as caught:
        ac.load_model(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("device", ["tpu", "cuda:99", 99, None, "meta"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(SpecError, match="device"):
        ac.load_model("demo/cnn@random", device=device)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", ["demo/vit", "demo/se_cnn@random"])
def test_a_model_loaded_without_gradients_has_them_later(mode, name):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = ac.make_explainer(ac.load_model(name), "saliency").explain(images).values
    with mode():
        model = ac.load_model(name)
        inside = ac.make_explainer(model, "saliency").explain(images).values
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(ac.make_explainer(model, "saliency").explain(images).values, expected)


def test_a_gpu_beyond_those_of_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SpecError, match="device 'cuda:2': this machine has 2 GPUs, counted from 0"):
        ac.load_model("demo/cnn@random", device="cuda:2")
