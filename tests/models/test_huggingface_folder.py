"""Folders written by save_pretrained, loaded without a network."""

import json
import socket

import pytest
import torch
import transformers
from safetensors.torch import save_file

import attncompare as ac
from attncompare.errors import AttnCompareError, UnsupportedModelError
from attncompare.inspection.layout import TokenLayout
from attncompare.models.preprocessing import Preprocessing

LABELS = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "id2label": LABELS,
    "label2id": {name: index for index, name in LABELS.items()},
}
DINO = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
PROCESSOR = {
    "do_resize": True,
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}
VIT_PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, **PROCESSOR}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(folder, kind, options, processor=None):
    """Save a seeded random model, and the processor's configuration beside it."""
    config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('Model')}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = getattr(transformers, kind)(config(**options)).eval()
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def test_a_vit_folder_is_loaded_with_its_weights_and_processor(tmp_path):
    theirs = write(tmp_path, "ViTForImageClassification", VIT, VIT_PROCESSOR)
    ours = ac.load_model(f"hf/{tmp_path}")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(PROCESSOR[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = theirs((images - mean) / std).logits
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)
    assert ours.source.preprocessing == Preprocessing((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", None)
    assert [ours.class_name(index) for index in range(5)] == list(LABELS.values())
    assert ours.tokens == TokenLayout(1, (4, 4), 0)
    assert not ours.embedding


def test_a_vit_folder_is_explained_by_every_kind_of_method(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT, VIT_PROCESSOR)
    model = ac.load_model(f"hf/{tmp_path}")
    names = ["attention_rollout", "gradient_rollout", "class_attention", "hires_cam", "saliency"]
    maps = ac.explain_together(model, names, torch.rand(1, 3, 32, 32))
    assert all(shown.values.std() > 0 for shown in maps.values())


def test_a_folder_without_a_processor_takes_the_size_of_the_config(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT)
    assert ac.load_model(f"hf/{tmp_path}").source.preprocessing == Preprocessing((32, 32))


@pytest.mark.parametrize(
    "processor",
    [
        None,
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 64},
            "crop_pct": 0.875,
            **PROCESSOR,
        },
    ],
)
def test_a_resnet_folder_is_a_cnn_with_cam(tmp_path, processor):
    theirs = write(tmp_path, "ResNetForImageClassification", RESNET, processor)
    ours = ac.load_model(f"hf/{tmp_path}")
    side = 64 if processor else 224
    assert ours.size == (side, side)
    assert ours.family == "cnn"
    mean, std = (torch.tensor(p).reshape(3, 1, 1) for p in (ours.mean, ours.std))
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs((images - mean) / std).logits
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)
    maps = ac.explain_together(ours, ["cam", "grad_cam", "layer_cam"], images, 2)
    assert maps["cam"].values.shape == maps["grad_cam"].values.shape
    assert maps["cam"].values.std() > 0


def test_the_crop_of_a_resnet_is_that_of_its_processor(tmp_path):
    """Below 384 pixels this processor resizes to size / crop_pct and cuts out the center."""
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875}
    write(tmp_path, "ResNetForImageClassification", RESNET, {**processor, **PROCESSOR})
    ours = ac.load_model(f"hf/{tmp_path}").source.preprocessing
    assert (ours.size, ours.crop) == ((64, 64), 0.875)


def test_the_crop_of_a_clip_like_processor_is_kept(tmp_path):
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 40},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        **PROCESSOR,
    }
    write(tmp_path, "ViTForImageClassification", VIT, processor)
    ours = ac.load_model(f"hf/{tmp_path}").source.preprocessing
    assert (ours.size, ours.crop) == ((32, 32), 0.8)


@pytest.mark.parametrize(("resample", "name"), [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic")])
def test_the_interpolation_is_that_of_the_processor(tmp_path, resample, name):
    write(tmp_path, "ViTForImageClassification", VIT, {**VIT_PROCESSOR, "resample": resample})
    assert ac.load_model(f"hf/{tmp_path}").source.preprocessing.interpolation == name


def test_a_processor_that_does_not_normalize_is_taken_at_its_word(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT, {**VIT_PROCESSOR, "do_normalize": False})
    ours = ac.load_model(f"hf/{tmp_path}").source.preprocessing
    assert (ours.mean, ours.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("kind", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_a_deit_folder_keeps_the_class_that_was_saved(tmp_path, kind):
    write(tmp_path, kind, VIT)
    model = ac.load_model(f"hf/{tmp_path}")
    assert type(model.module).__name__ == kind
    assert model.tokens.class_token == ((0, 1) if "Teacher" in kind else 0)


def test_a_folder_without_a_head_is_explained_by_its_embedding(tmp_path):
    theirs = write(tmp_path, "Dinov2Model", DINO)
    ours = ac.load_model(f"hf/{tmp_path}")
    assert ours.embedding
    assert ours.class_names is None
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs((images - 0.5) / 0.5).pooler_output
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)
    maps = ac.explain_together(ours, ["class_attention", "gradient_rollout", "grad_cam"], images, "embedding")
    assert all(shown.values.shape == (2, 4, 4) for shown in maps.values())
    assert maps["gradient_rollout"].values.std() > 0


def test_random_weights_of_a_folder_are_reproducible_and_not_its_own(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT)
    first, second = (ac.load_model(f"hf/{tmp_path}@random") for _ in range(2))
    assert first.weights_hash == second.weights_hash != ac.load_model(f"hf/{tmp_path}").weights_hash


def test_random_weights_of_a_folder_need_no_fused_attention(tmp_path):
    """A network without attention has no fused kernel to be built with."""
    write(tmp_path, "ResNetForImageClassification", RESNET)
    assert ac.load_model(f"hf/{tmp_path}@random").family == "cnn"


@pytest.mark.parametrize("suffix", ["", "@random"])
def test_the_attention_that_a_folder_names_is_not_needed(tmp_path, suffix):
    write(tmp_path, "ViTForImageClassification", VIT)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2"}))
    assert ac.load_model(f"hf/{tmp_path}{suffix}").module.config._attn_implementation == "sdpa"


def test_a_checkpoint_replaces_the_weights_of_a_folder(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT)
    state = {name: value + 1 for name, value in ac.load_model(f"hf/{tmp_path}").module.state_dict().items()}
    save_file(state, tmp_path / "other.safetensors")
    found = ac.load_model(f"hf/{tmp_path}@{tmp_path / 'other.safetensors'}").module.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(AttnCompareError, match=r"no such folder with a config.json"):
        ac.load_model(f"hf/{tmp_path / 'nowhere'}")


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(AttnCompareError, match=r"no such folder with a config.json"):
        ac.load_model(f"hf/{tmp_path}")


def test_a_folder_without_weights_is_named(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(AttnCompareError, match="cannot be loaded"):
        ac.load_model(f"hf/{tmp_path}")


def test_code_beside_a_model_is_never_run(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.Net"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(AttnCompareError):
        ac.load_model(f"hf/{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_blue_comes_first_where_the_processor_says_so(tmp_path):
    """As in MobileViT's folders; images and the mean color stay RGB for everything else."""
    processor = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 72}}
    processor |= {"crop_size": {"height": 64, "width": 64}, "do_flip_channel_order": True}
    theirs = write(tmp_path, "ResNetForImageClassification", RESNET, processor)
    ours = ac.load_model(f"hf/{tmp_path}")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images.flip(1)).logits
        assert (theirs(images).logits - expected).abs().max() > 1e-3
    assert ours.source.preprocessing.bgr
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)
    plain = images.clone().requires_grad_(True)
    wanted = torch.autograd.grad(theirs(plain.flip(1)).logits[:, 2].sum(), plain)[0].abs().amax(dim=1)
    shown = ac.make_explainer(ours, "saliency").explain(images, 2).values
    torch.testing.assert_close(shown, wanted, atol=1e-5 * float(wanted.max()), rtol=1e-3)


def test_weights_stored_in_half_precision_run_in_float32(tmp_path):
    write(tmp_path, "ViTForImageClassification", VIT).half().save_pretrained(tmp_path)
    assert ac.load_model(f"hf/{tmp_path}").forward(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_a_head_that_the_folder_does_not_hold_is_not_made_up(tmp_path):
    write(tmp_path, "ViTModel", VIT)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["ViTForImageClassification"]}))
    with pytest.raises(AttnCompareError, match=r"holds no weights for classifier.bias .*would be random"):
        ac.load_model(f"hf/{tmp_path}")
    assert not ac.load_model(f"hf/{tmp_path}@random").embedding


def test_a_pooler_that_the_folder_does_not_hold_is_left_out(tmp_path):
    """As in DINO's folders: the embedding is the class token, not a random projection of it."""
    theirs = write(tmp_path, "ViTModel", VIT)
    theirs.pooler = None
    theirs.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs((images - 0.5) / 0.5).last_hidden_state[:, 0]
    ours = ac.load_model(f"hf/{tmp_path}")
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)
    assert ours.tokens.class_token == 0


STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}
CVT = {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}


@pytest.mark.parametrize(
    ("kind", "options", "read"),
    [
        ("ViTMSNModel", VIT, lambda out: out.last_hidden_state[:, 0]),
        ("IJepaModel", VIT, lambda out: out.last_hidden_state.mean(dim=1)),
        ("SegformerModel", STAGES, lambda out: out.last_hidden_state.mean(dim=(2, 3))),
        ("PvtModel", {**STAGES, "image_size": 64}, lambda out: out.last_hidden_state[:, 0]),
        ("CvtModel", CVT, lambda out: out.cls_token_value[:, 0]),
        ("ResNetModel", RESNET, lambda out: out.pooler_output.flatten(1)),
        ("BeitModel", VIT, lambda out: out.pooler_output),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_the_embedding_of_a_backbone_is_pooled_class_token_or_mean(tmp_path, kind, options, read):
    theirs = write(tmp_path, kind, options)
    ours = ac.load_model(f"hf/{tmp_path}")
    images = torch.rand(2, 3, *ours.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = read(theirs((images - 0.5) / 0.5))
    assert ours.embedding
    torch.testing.assert_close(ours.forward(images).detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("ImageGPTForImageClassification", {"n_embd": 8, "n_layer": 1, "n_head": 1}, "color clusters"),
        ("ViTMAEModel", VIT, "leaves out patches at random"),
        (
            "BertModel",
            {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9},
            "input_ids",
        ),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_model_that_does_not_take_images_is_refused_with_the_reason(tmp_path, kind, options, reason):
    write(tmp_path, kind, options)
    with pytest.raises(UnsupportedModelError, match=rf"hf/.* cannot be explained: .*{reason}"):
        ac.load_model(f"hf/{tmp_path}")
