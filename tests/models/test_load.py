"""Names to models: random weights, checkpoints, suggestions and patterns."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import attncompare as ac
from attncompare.errors import AttnCompareError, UnknownNameError
from attncompare.training.models import build
from attncompare.training.spec import TrainSpec

RANDOM = [
    "demo/cnn@random",
    "demo/se_cnn@random",
    "demo/vit@random",
    "torchvision/squeezenet1_1@random",
    "timm/test_vit@random",
]


@pytest.mark.parametrize("name", RANDOM)
def test_random_weights_are_the_same_every_time(name):
    torch.manual_seed(1)
    first = ac.load_model(name)
    torch.manual_seed(2)
    second = ac.load_model(name)
    assert first.weights_hash == second.weights_hash
    assert first.name == name


@pytest.mark.parametrize("name", RANDOM)
def test_building_random_weights_leaves_the_random_state(name):
    before = torch.get_rng_state()
    ac.load_model(name)
    assert torch.equal(torch.get_rng_state(), before)


def wrapped():
    return ac.wrap_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 2)), size=(32, 32))


LOADS = {
    "demo": lambda: ac.load_model("demo/cnn"),
    "random": lambda: ac.load_model("demo/vit@random"),
    "random of timm": lambda: ac.load_model("timm/test_vit@random"),
    "random of torchvision": lambda: ac.load_model("torchvision/squeezenet1_1@random"),
    "wrapped": wrapped,
    "built for training": lambda: build(TrainSpec(model="demo/se_cnn@random"), ("a", "b")),
    "built with gates": lambda: build(TrainSpec(squeeze_excite={"layers": ["block1"]}), ("a", "b")),
}


@pytest.mark.parametrize("kind", LOADS)
def test_loading_seeds_the_generator_of_no_other_device(monkeypatch, kind):
    """Nothing would restore them, so that a user's GPU would draw from a seed that is not the user's."""

    def refuse(seed):
        raise AssertionError("torch.manual_seed seeds the generators of all devices")

    for place in (torch, torch.random):
        monkeypatch.setattr(place, "manual_seed", refuse)
    LOADS[kind]()


def test_a_seed_may_be_a_numpy_integer():
    hashes = [ac.load_model("demo/cnn@random", seed=seed).weights_hash for seed in (3, np.int64(3), 4)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_random_weights_are_not_the_trained_ones():
    assert ac.load_model("demo/cnn@random").weights_hash != ac.load_model("demo/cnn").weights_hash


@pytest.mark.parametrize("name", ["demo/cnn@random", "demo/vit@random"])
def test_a_loaded_model_is_ready_to_explain(name):
    model = ac.load_model(name)
    assert not any(module.training for module in model.module.modules())
    assert model.forward(torch.rand(2, 3, *model.size)).shape == (2, 8)


def other_weights(model):
    generator = torch.Generator().manual_seed(7)
    state = model.module.state_dict()
    return {
        name: value + torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["demo/cnn", "demo/vit"])
def test_a_checkpoint_comes_back_as_it_was_written(tmp_path, name, ending):
    state = other_weights(ac.load_model(f"{name}@random"))
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    loaded = ac.load_model(f"{name}@{path}")
    assert loaded.name == f"{name}@{path}"
    found = loaded.module.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(ac.load_model("demo/vit@random").module.state_dict(), path)
    with pytest.raises(
        AttnCompareError, match=r"checkpoint .*vit.safetensors cannot be loaded: 17 tensors are missing: 0.0.weight, "
    ):
        ac.load_model(f"demo/cnn@{path}")


def test_a_checkpoint_with_a_missing_tensor_is_refused(tmp_path):
    state = dict(ac.load_model("demo/cnn@random").module.state_dict())
    state.pop("5.bias")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(AttnCompareError, match="cannot be loaded"):
        ac.load_model(f"demo/cnn@{tmp_path / 'less.safetensors'}")


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused(tmp_path):
    state = {name: value.clone() for name, value in ac.load_model("demo/cnn@random").module.state_dict().items()}
    state["5.bias"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(AttnCompareError, match=r"non-finite weights in 5\.bias"):
        ac.load_model(f"demo/cnn@{tmp_path / 'nan.safetensors'}")


@pytest.mark.parametrize(
    ("file", "content"),
    [("broken.safetensors", b"no tensors"), ("broken.pth", b"no tensors"), ("empty.safetensors", b"")],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(AttnCompareError, match=f"checkpoint .*{file} cannot be loaded"):
        ac.load_model(f"demo/cnn@{tmp_path / file}")


class Payload:
    """Code in a pickle, which must never run."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path):
    torch.save({"5.bias": Payload()}, tmp_path / "code.pth")
    with pytest.raises(AttnCompareError, match="cannot be loaded"):
        ac.load_model(f"demo/cnn@{tmp_path / 'code.pth'}")
    assert not Payload.ran


def test_a_checkpoint_that_does_not_exist_is_named():
    with pytest.raises(AttnCompareError, match=r"checkpoint nowhere.safetensors does not exist"):
        ac.load_model("demo/cnn@nowhere.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo/cn", "unknown model 'demo/cn'; did you mean demo/cnn"),
        ("demo/Vit@random", "did you mean demo/vit"),
        ("torchvision/resnet5O", "did you mean torchvision/resnet50"),
        ("timm/vit_tiny_patch16_223@random", "did you mean .*timm/vit_tiny_patch16_224"),
        ("offline/efficientnet_lite9", "did you mean offline/efficientnet_lite"),
        ("resnet50", "a model is one of torchvision/NAME, timm/NAME, hf/NAME, demo/NAME, offline/NAME"),
        ("keras/resnet50", "a model is one of"),
        ("demo/", "a model is one of"),
        ("", "a model is one of"),
    ],
)
def test_an_unknown_name_is_refused_with_what_was_probably_meant(name, message):
    with pytest.raises(UnknownNameError, match=message):
        ac.load_model(name)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("demo/*", ["demo/cnn", "demo/se_cnn", "demo/vit"]),
        ("demo/*cnn", ["demo/cnn", "demo/se_cnn"]),
        ("d*/vit", ["demo/vit"]),
        ("*/cnn", ["demo/cnn"]),
        ("demo/vit", ["demo/vit"]),
        ("demo", []),
        ("keras/*", []),
        (
            "offline/*",
            [
                "offline/efficientnet_lite0",
                "offline/efficientnet_lite1",
                "offline/efficientnet_lite2",
                "offline/vit_small_focus",
            ],
        ),
    ],
)
def test_models_are_listed_by_pattern(pattern, expected):
    assert ac.list_models(pattern) == expected


def test_every_source_that_can_be_listed_is_listed():
    names = ac.list_models()
    assert names == sorted(set(names))
    assert {"torchvision/resnet50", "timm/vit_tiny_patch16_224", "demo/vit", "offline/vit_small_focus"} <= set(names)
    assert all(name.startswith("timm/vit_") for name in ac.list_models("timm/vit_*"))
    assert len(ac.list_models("timm/vit_*")) > 50


def test_the_size_and_colors_of_a_model_come_from_its_own_configuration():
    ours = ac.load_model("timm/test_vit@random").source.preprocessing
    import timm

    theirs = timm.data.resolve_data_config(model=timm.create_model("test_vit"))
    assert ours.size == theirs["input_size"][1:]
    assert (ours.mean, ours.std, ours.interpolation) == (theirs["mean"], theirs["std"], theirs["interpolation"])
    assert ours.crop == theirs["crop_pct"]
    squeezenet = ac.load_model("torchvision/squeezenet1_1@random").source.preprocessing
    assert (squeezenet.size, squeezenet.crop) == ((224, 224), 224 / 256)
    assert squeezenet.mean == (0.485, 0.456, 0.406)
    assert squeezenet.std == (0.229, 0.224, 0.225)
