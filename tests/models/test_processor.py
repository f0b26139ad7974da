"""What is measured of an image processor is what it does: our pipeline gives the model the same pixels."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from attncompare.data.images import fit_image, to_tensor
from attncompare.errors import UnsupportedModelError
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.sources.processor import preprocessing_of


def picture(height, width):
    """Soft colors, so that half a pixel matters little."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def ours(image, how):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (how.mean, how.std))
    pixels = (to_tensor(fit_image(image, how)) - mean) / std
    return pixels.flip(0) if how.bgr else pixels


def edge(size):
    return {"shortest_edge": size}


def box(size):
    return {"height": size, "width": size}


@pytest.mark.parametrize(
    ("name", "options", "crop"),
    [
        ("ViTImageProcessor", {}, None),
        ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}, None),
        ("SiglipImageProcessor", {}, None),
        ("CLIPImageProcessor", {}, 1.0),
        ("CLIPImageProcessorPil", {}, 1.0),
        ("BitImageProcessor", {"size": edge(256)}, 0.875),
        ("ConvNextImageProcessor", {"size": edge(224)}, 0.875),
        ("ConvNextImageProcessor", {}, None),
        ("PPLCNetImageProcessor", {"crop_size": 96, "resize_short": 128}, 0.75),
        ("EfficientNetImageProcessor", {}, None),
        ("EfficientNetImageProcessor", {"include_top": False, "rescale_offset": True}, None),
        ("LevitImageProcessor", {}, 0.875),
        ("MobileNetV2ImageProcessor", {}, 0.875),
        ("MobileViTImageProcessor", {"size": edge(288), "crop_size": box(256)}, 256 / 288),
        ("MobileViTImageProcessor", {"do_flip_channel_order": False}, 256 / 224),
        ("PerceiverImageProcessor", {}, 0.875),
        ("PoolFormerImageProcessor", {}, 0.9),
        ("PPLCNetImageProcessor", {}, 0.875),
    ],
)
@pytest.mark.parametrize("shape", [(300, 450), (450, 300)], ids=["landscape", "portrait"])
def test_the_model_sees_what_the_processor_would_show_it(name, options, crop, shape):
    processor = getattr(transformers, name)(**options)
    how, _ = preprocessing_of(processor, None, "hf/model")
    image = picture(*shape)
    expected = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0].float()
    found = ours(image, how)
    assert how.crop == crop
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.05 * expected.std()  # a crop may lie half a pixel aside


@pytest.mark.parametrize("name", ["ViTImageProcessor", "CLIPImageProcessor", "PPLCNetImageProcessor"])
def test_declared_digits_are_kept(name):
    processor = getattr(transformers, name)()
    how, _ = preprocessing_of(processor, None, "hf/model")
    assert (how.mean, how.std) == (tuple(processor.image_mean), tuple(processor.image_std))


def test_the_double_division_of_efficientnet_is_seen():
    """Its `include_top` divides by the standard deviation a second time."""
    how, _ = preprocessing_of(transformers.EfficientNetImageProcessor(), None, "hf/model")
    assert (how.mean, how.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_processor_that_leaves_the_size_alone_takes_that_of_the_model():
    processor = transformers.ViTImageProcessor(do_resize=False)
    assert preprocessing_of(processor, (48, 48), "hf/model")[0] == Preprocessing((48, 48))


def test_a_processor_that_makes_something_else_of_a_picture_is_refused():
    clusters = transformers.ImageGPTImageProcessor(clusters=np.eye(3), size=box(8))
    with pytest.raises(UnsupportedModelError, match="its image processor makes input_ids of a picture"):
        preprocessing_of(clusters, None, "hf/model")
    with pytest.raises(UnsupportedModelError, match=r"makes \(1, 256, 768\) of a picture, not"):
        preprocessing_of(transformers.Siglip2ImageProcessor(), None, "hf/model")


def test_a_processor_that_mixes_colors_is_refused():
    def gray(images, return_tensors):
        pixels = torch.tensor(np.asarray(images.resize((8, 8)))).float().mean(dim=2)
        return {"pixel_values": pixels.expand(1, 3, 8, 8)}

    with pytest.raises(UnsupportedModelError, match="does not scale each color channel by itself"):
        preprocessing_of(gray, (8, 8), "hf/model")


def test_a_processor_that_fails_is_named():
    def broken(images, return_tensors):
        raise KeyError("no")

    with pytest.raises(UnsupportedModelError, match="hf/model: its image processor does not take a picture"):
        preprocessing_of(broken, (8, 8), "hf/model")


def altered(change, **options):
    """A processor that changes the picture before or the tensor after what ViT's does."""
    inner = transformers.ViTImageProcessor(**{"size": box(64)} | options)

    def run(images, return_tensors):
        return inner(images=change(images), return_tensors=return_tensors)

    return run


def letterbox(image):
    side = max(image.size)
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def at_top_left(image):
    side = round(0.875 * min(image.size))
    return image.crop((0, 0, side, side))


@pytest.mark.parametrize(
    "processor",
    [
        altered(letterbox),
        altered(at_top_left),
        altered(lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        altered(lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
        transformers.CLIPImageProcessor(do_resize=False),
    ],
    ids=["letterbox", "top left", "mirrored", "upside down", "crop alone"],
)
def test_a_geometry_that_ours_does_not_have_is_refused_by_class(processor):
    kind = type(processor).__name__
    with pytest.raises(UnsupportedModelError, match=rf"hf/model: .*\({kind}\) makes .*cannot be described by a resize"):
        preprocessing_of(processor, (64, 64), "hf/model")


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("DeiTImageProcessor", {}, "squashes a picture before it crops"),
        ("TextNetImageProcessor", {}, "gives pictures of other shapes other sizes"),
        ("ViTImageProcessor", {"do_resize": False}, "gives pictures of other shapes other sizes"),
        ("DonutImageProcessor", {"size": box(64)}, "pads pictures"),
        ("ViTImageProcessor", {}, ""),
        ("PoolFormerImageProcessor", {}, ""),
        ("PerceiverImageProcessor", {"size": box(32), "crop_size": box(37)}, ""),  # half a pixel aside, of 32
    ],
)
def test_a_known_departure_is_noted(name, options, note):
    processor = getattr(transformers, name)(**options)
    _, found = preprocessing_of(processor, None, "hf/model")
    assert note in found
    assert bool(found) == bool(note)
