import random
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from attncompare import load_model
from attncompare.data import images as reader
from attncompare.data.images import fit_image, load_images, read_image, to_tensor
from attncompare.errors import ImageError
from attncompare.models.preprocessing import Preprocessing

WHITE = [255, 255, 255]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(folder: Path, picture: Image.Image, name: str, **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def png_of_16_bit_rgb(path: Path, values: np.ndarray) -> Path:
    """A PNG of color type 2 and bit depth 16, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def over_white(color: int, alpha: int) -> float:
    return color * alpha / 255 + 255 * (255 - alpha) / 255


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_rgb_files_are_read_exactly(tmp_path, name):
    pixels = noise(7, 9)
    options = {"lossless": True} if name.endswith("webp") else {}
    found = read_image(saved(tmp_path, Image.fromarray(pixels), name, **options))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_a_path_may_be_text(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(4, 5)), "a.png")
    np.testing.assert_array_equal(read_image(str(path)), read_image(path))


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),  # a quarter turn clockwise
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),  # a quarter turn counterclockwise
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored, exif = noise(5, 8), Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(stored), "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](stored))


def test_a_phone_photo_is_turned_upright(tmp_path):
    stored, exif = np.zeros((40, 64, 3), np.uint8), Image.Exif()
    stored[:, :32] = [255, 0, 0]  # the left half as stored is the top half when turned clockwise
    exif[0x0112] = 6
    found = read_image(saved(tmp_path, Image.fromarray(stored), "phone.jpg", exif=exif, quality=95))
    assert found.shape == (64, 40, 3)
    np.testing.assert_allclose(found[8, 20], [255, 0, 0], atol=4)
    np.testing.assert_allclose(found[56, 20], [0, 0, 0], atol=4)


@pytest.mark.parametrize("name", ["gray.png", "gray.tif"])
def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path, name):
    values = np.array([[0, 257 * 3, 257 * 100], [257 * 200, 257 * 254, 65535]], np.uint16)
    found = read_image(saved(tmp_path, Image.fromarray(values), name))
    expected = np.array([[0, 3, 100], [200, 254, 255]], np.uint8)
    np.testing.assert_array_equal(found, np.repeat(expected[:, :, None], 3, axis=2))


def test_16_bit_gray_is_turned_upright_too(tmp_path):
    values, exif = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257 * 40, Image.Exif()
    exif[0x0112] = 6
    found = read_image(saved(tmp_path, Image.fromarray(values), "gray.png", exif=exif))
    np.testing.assert_array_equal(found[:, :, 0], [[120, 0], [160, 40], [200, 80]])


def test_16_bit_color_is_scaled_and_not_clipped(tmp_path):
    expected = noise(3, 4)
    found = read_image(png_of_16_bit_rgb(tmp_path / "deep.png", expected.astype(np.uint16) * 257))
    np.testing.assert_array_equal(found, expected)


def test_float_gray_from_zero_to_one_is_scaled(tmp_path):
    values = np.array([[0.0, 0.2], [0.6, 1.0]], np.float32)
    found = read_image(saved(tmp_path, Image.fromarray(values), "float.tif"))
    np.testing.assert_array_equal(found[:, :, 2], [[0, 51], [153, 255]])


@pytest.mark.parametrize(
    ("ink", "color"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_a_cmyk_jpeg_keeps_its_colors(tmp_path, ink, color):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), ink), "print.jpg", quality=95)
    found = read_image(path)
    assert found.shape == (16, 16, 3)
    np.testing.assert_allclose(found.reshape(-1, 3), np.tile(color, (256, 1)), atol=4)


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_gray_with_alpha_lies_on_white(tmp_path, alpha):
    found = read_image(saved(tmp_path, Image.new("LA", (3, 2), (100, alpha)), "la.png"))
    assert found.shape == (2, 3, 3)
    np.testing.assert_allclose(found, over_white(100, alpha), atol=1)


@pytest.mark.parametrize("alpha", [0, 77, 255])
def test_color_with_alpha_lies_on_white(tmp_path, alpha):
    found = read_image(saved(tmp_path, Image.new("RGBA", (3, 2), (200, 0, 40, alpha)), "rgba.png"))
    np.testing.assert_allclose(found[1, 2], [over_white(c, alpha) for c in (200, 0, 40)], atol=1)


def palette_image() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    return picture


def test_a_palette_is_looked_up(tmp_path):
    found = read_image(saved(tmp_path, palette_image(), "p.png"))
    assert found.tolist() == [[[10, 20, 30], [200, 100, 0], [0, 0, 255]]]


@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_a_transparent_palette_entry_is_white(tmp_path, name):
    found = read_image(saved(tmp_path, palette_image(), name, transparency=1))
    assert found.tolist() == [[[10, 20, 30], WHITE, [0, 0, 255]]]


def test_a_transparent_color_of_an_rgb_file_is_white(tmp_path):
    picture = Image.new("RGB", (2, 1), (9, 8, 7))
    picture.putpixel((1, 0), (50, 60, 70))
    found = read_image(saved(tmp_path, picture, "key.png", transparency=(9, 8, 7)))
    assert found.tolist() == [[WHITE, [50, 60, 70]]]


def test_one_bit_becomes_black_and_white(tmp_path):
    picture = Image.new("1", (2, 1))
    picture.putpixel((1, 0), 1)
    assert read_image(saved(tmp_path, picture, "bit.png")).tolist() == [[[0, 0, 0], WHITE]]


def test_gray_fills_all_three_channels(tmp_path):
    found = read_image(saved(tmp_path, Image.new("L", (2, 2), 77), "l.png"))
    assert (found == 77).all() and found.shape == (2, 2, 3)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    found = read_image(saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:]))
    assert (found == [255, 0, 0]).all() and found.shape == (3, 4, 3)


def truncated(folder: Path, name: str) -> Path:
    path = saved(folder, Image.fromarray(noise(64, 64)), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


UNREADABLE = {
    "truncated png": lambda folder: truncated(folder, "half.png"),
    "truncated jpeg": lambda folder: truncated(folder, "half.jpg"),
    "truncated gif": lambda folder: truncated(folder, "half.gif"),
    "truncated webp": lambda folder: truncated(folder, "half.webp"),
    "truncated tiff": lambda folder: truncated(folder, "half.tif"),
    "empty": lambda folder: written(folder, "empty.png", b""),
    "text": lambda folder: written(folder, "notes.png", b"not an image\n"),
    "signature only": lambda folder: written(folder, "start.png", b"\x89PNG\r\n\x1a\n"),
    "directory": lambda folder: a_folder(folder / "x.jpg"),
    "missing": lambda folder: folder / "nowhere.png",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_whole_image_is_refused_by_path(tmp_path, kind):
    path = UNREADABLE[kind](tmp_path)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert len(message) > len(str(path)) + 10


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_a_pillow_image_is_read_as_its_file_is(tmp_path, mode):
    source = Image.fromarray(noise(40, 30))
    made = source.convert("I;16") if mode == "I;16" else source.convert(mode)
    path = saved(tmp_path, made, "made.tif")
    model = load_model("demo/cnn")
    assert torch.equal(load_images(made, model), load_images(path, model))
    with Image.open(path) as opened:
        assert torch.equal(load_images([opened], model), load_images(path, model))


def test_a_pillow_image_of_integers_without_a_white_is_refused():
    with pytest.raises(ImageError, match="the Pillow image: its 32-bit integers have no known white"):
        load_images(Image.fromarray(noise(8, 8)).convert("I"), load_model("demo/cnn"))


def test_an_empty_pillow_image_is_refused():
    with pytest.raises(ImageError, match="the Pillow image: 0 x 5 pixels; it is empty"):
        load_images(Image.new("RGB", (0, 5)), load_model("demo/cnn"))


def test_a_pillow_image_that_cannot_be_decoded_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(200, 200)), "cut.png")
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as opened, pytest.raises(ImageError, match="the Pillow image: cannot be read") as caught:
        load_images(opened, load_model("demo/cnn"))
    assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused_with_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_PIXELS", 99)
    path = saved(tmp_path, Image.fromarray(noise(10, 10)), "bomb.png")
    with pytest.raises(ImageError, match="99") as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    monkeypatch.setattr(reader, "MAX_PIXELS", 100)
    assert read_image(path).shape == (10, 10, 3)


def test_a_bomb_that_pillow_stops_first_is_refused_alike(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(noise(10, 10)), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp"])
def test_a_damaged_file_is_an_image_or_an_image_error(tmp_path, name):
    path, chance = saved(tmp_path, Image.fromarray(noise(20, 24)), name), random.Random(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(min(300, len(whole)))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            found = read_image(path)
            assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8
        except ImageError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0


def test_without_a_crop_the_whole_image_is_squashed_to_the_size():
    found = fit_image(
        np.repeat(noise(2, 1), 3, axis=1).repeat(4, axis=0), Preprocessing((4, 6), interpolation="nearest")
    )
    assert found.shape == (4, 6, 3)
    np.testing.assert_array_equal(found, np.repeat(noise(2, 1), 6, axis=1).repeat(2, axis=0))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(40, 80), (80, 40)])
def test_a_crop_keeps_the_middle_of_an_oblong_image(interpolation, size):
    picture = noise(*size)
    how = Preprocessing((20, 20), crop=0.5, interpolation=interpolation)  # the short side is 40 = 20 / 0.5 already
    top, left = (size[0] - 20) // 2, (size[1] - 20) // 2
    np.testing.assert_array_equal(fit_image(picture, how), picture[top : top + 20, left : left + 20])


def test_a_crop_scales_the_short_side_to_the_size_over_the_fraction():
    columns, rows = np.meshgrid(np.arange(200), np.arange(100))
    picture = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    found = fit_image(picture, Preprocessing((36, 36), crop=0.72)).astype(float)
    # 100 x 200 becomes 50 x 100, of which rows 7..42 and columns 32..67 are kept; pixel i lies at 2 i + 1/2 before
    np.testing.assert_allclose(found[:, 18, 0], 2 * np.arange(7, 43) + 0.5, atol=1)
    np.testing.assert_allclose(found[18, :, 1], 2 * np.arange(32, 68) + 0.5, atol=1)


def photo(height: int, width: int) -> np.ndarray:
    """Coarse noise, so that a shift by part of a pixel shows."""
    coarse = np.random.default_rng(3).uniform(0, 255, (height // 6, width // 6, 3))
    large = zoom(coarse, (height / coarse.shape[0], width / coarse.shape[1], 1), order=1)
    return large[:height, :width].astype(np.uint8)


OBLONG = [(300, 451), (451, 300), (113, 77), (97, 97), (64, 64)]


@pytest.mark.parametrize("source", OBLONG)
@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
def test_images_are_fitted_as_timm_fits_them(source, crop):
    picture = photo(*source)
    theirs = create_transform((3, 64, 64), crop_pct=crop, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    ours = fit_image(picture, Preprocessing((64, 64), interpolation="bicubic", crop=crop))
    torch.testing.assert_close(to_tensor(ours), theirs(Image.fromarray(picture)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", OBLONG)
@pytest.mark.parametrize(("size", "resized"), [(64, 73), (60, 64), (75, 80), (56, 58)])
def test_images_are_fitted_as_torchvision_fits_them(source, size, resized):
    picture = photo(*source)
    theirs = ImageClassification(
        crop_size=size, resize_size=resized, mean=(0, 0, 0), std=(1, 1, 1), interpolation=InterpolationMode.BILINEAR
    )
    ours = fit_image(picture, Preprocessing((size, size), interpolation="bilinear", crop=size / resized))
    torch.testing.assert_close(to_tensor(ours), theirs(Image.fromarray(picture)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", [(50, 90), (90, 50), (61, 61), (23, 200), (7, 9)])
@pytest.mark.parametrize("crop", [None, 0.875, 0.9, 1.0])
def test_every_image_ends_at_the_size_of_the_model(source, crop):
    assert fit_image(noise(*source), Preprocessing((32, 48), crop=crop)).shape == (32, 48, 3)


def test_a_full_crop_of_an_oblong_size_covers_it_without_squashing():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[10:30, 10:30] = 255
    found = fit_image(picture, Preprocessing((20, 40), crop=1.0, interpolation="nearest"))
    np.testing.assert_array_equal(found, picture[10:30])


def test_a_mask_is_never_blended():
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    found = fit_image(mask, Preprocessing((6, 6), interpolation="bicubic"), mask=True)
    np.testing.assert_array_equal(found, np.kron(mask, np.ones((3, 3), np.uint8)))


@pytest.mark.parametrize("crop", [None, 0.8])
@pytest.mark.parametrize("source", [(60, 100), (90, 70)])
def test_a_mask_stays_on_its_object(crop, source):
    mask = np.zeros(source, np.uint8)
    mask[20:45, 25:50] = 255
    how = Preprocessing((32, 32), crop=crop, interpolation="bilinear")
    picture, fitted = fit_image(np.repeat(mask[:, :, None], 3, axis=2), how), fit_image(mask, how, mask=True)
    assert set(np.unique(fitted)) == {0, 255}
    inside, outside = picture[:, :, 0] > 230, picture[:, :, 0] < 25
    assert inside.sum() > 30
    assert (fitted[inside] == 255).all() and (fitted[outside] == 0).all()


def test_tensors_hold_channels_first_from_zero_to_one():
    picture = np.array([[[0, 51, 255], [102, 153, 204]]], np.uint8)
    expected = torch.tensor([[[0.0, 0.4]], [[0.2, 0.6]], [[1.0, 0.8]]])
    found = to_tensor(picture)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def model_of(how: Preprocessing) -> SimpleNamespace:
    return SimpleNamespace(source=SimpleNamespace(preprocessing=how), device=torch.device("cpu"))


def test_files_of_all_shapes_become_one_batch_in_order(tmp_path):
    pictures = [noise(30, 50, 1), noise(16, 16, 2), noise(50, 20, 3)]
    paths = [saved(tmp_path, Image.fromarray(p), f"{3 - i}.png") for i, p in enumerate(pictures)]
    how = Preprocessing((16, 16), crop=0.8)
    batch = load_images(paths, model_of(how))
    assert batch.shape == (3, 3, 16, 16) and batch.dtype == torch.float32
    for one, picture in zip(batch, pictures, strict=True):
        torch.testing.assert_close(one, to_tensor(fit_image(picture, how)))
    assert batch.min() >= 0 and batch.max() <= 1


def test_one_unreadable_file_of_a_batch_is_named(tmp_path):
    good = saved(tmp_path, Image.fromarray(noise(8, 8)), "good.png")
    with pytest.raises(ImageError, match=r"bad\.png"):
        load_images([good, written(tmp_path, "bad.png", b"")], model_of(Preprocessing((8, 8))))


def test_arrays_are_fitted_like_the_file_they_were_read_from(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    path, how = tmp_path / "one.png", Preprocessing((8, 8))
    Image.fromarray(pixels).save(path)
    assert torch.equal(load_images([pixels, path], model_of(how)), load_images([path, path], model_of(how)))
    assert torch.equal(load_images(pixels, model_of(how)), load_images(path, model_of(how)))


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_image_is_refused(pixels):
    with pytest.raises(ImageError, match="uint8"):
        load_images([pixels], model_of(Preprocessing((8, 8))))
