"""Image files of every awkward kind: read right or refused with a reason, alone and among good ones in a run."""

import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

import attncompare as ac
from attncompare.data.images import MAX_PIXELS, load_images, read_image
from attncompare.errors import ImageError
from attncompare.models import preprocessing
from attncompare.models.preprocessing import Preprocessing, fit_image

STORED = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = STORED[:, :, 0]
UPRIGHT = {
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.transpose(1, 0, 2),
    6: STORED[::-1].transpose(1, 0, 2),
    7: STORED[::-1, ::-1].transpose(1, 0, 2),
    8: STORED[:, ::-1].transpose(1, 0, 2),
}


def saved(picture: Image.Image, ending: str = "png", **options) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"image.{ending}"
        picture.save(path, **options)
        return path

    return make


def written(content: bytes, ending: str = "png") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / f"image.{ending}").write_bytes(content)
        return folder / f"image.{ending}"

    return make


def cut(make: Callable[[Path], Path], share: float) -> Callable[[Path], Path]:
    def shorter(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return shorter


def turned(orientation: int, ending: str) -> Callable[[Path], Path]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if ending == "webp" else {}
    return saved(Image.fromarray(STORED), ending, exif=exif, **lossless)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of any depth and color type, which Pillow reads but does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def tiff(values: np.ndarray, bits: int, **tags: int) -> bytes:
    """An uncompressed gray TIFF. tags: photometric (1 is black at zero), kind (1 unsigned, 2 signed, 3 float)."""
    content = values.tobytes()
    height, width = values.shape if bits != 12 else (1, 2)
    entries = [
        (256, width), (257, height), (258, bits), (259, 1), (262, tags.get("photometric", 1)), (273, 8),
        (277, 1), (278, height), (279, len(content)), (339, tags.get("kind", 1)),
    ]  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + table + b"\0\0\0\0"


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return color * share + 255 * (1 - share)


ALPHA = STORED[:, :, 1]
RGBA = np.dstack([STORED, ALPHA])
PALETTE = Image.fromarray(STORED).quantize(16)
FRAMES = [Image.new("RGB", (9, 6), color) for color in ((250, 0, 0), (0, 250, 0))]
FIRST = np.full((6, 9, 3), (250, 0, 0), np.uint8)
MOVING = {"save_all": True, "append_images": FRAMES[1:]}
SIXTEEN = GRAY.astype(np.uint16) * 257
KEY = struct.pack(">H", int(SIXTEEN[0, 0]))

# how the file is made, what must come out, and by how many levels it may differ
RIGHT = {
    **{f"png turned {n}": (turned(n, "png"), right, 0) for n, right in UPRIGHT.items()},
    **{f"{kind} turned": (turned(6, kind), UPRIGHT[6], 0) for kind in ("webp", "tiff")},
    "unknown orientation": (turned(77, "png"), STORED, 0),
    "16-bit gray png": (saved(Image.fromarray(SIXTEEN)), gray(GRAY), 0),
    "16-bit gray tiff": (written(tiff(SIXTEEN, 16), "tif"), gray(GRAY), 0),
    "16-bit tiff, white is zero": (written(tiff(SIXTEEN, 16, photometric=0), "tif"), gray(255 - GRAY), 0),
    "12-bit tiff": (written(tiff(np.array([[0xFF, 0xF0, 0x00]], np.uint8), 12), "tif"), gray([[255, 0]]), 0),
    "16-bit rgb png": (written(png(9, 6, 16, 2, deep_rows(STORED.astype(np.uint16) * 257))), STORED, 0),
    "16-bit rgba png": (
        written(png(9, 6, 16, 6, deep_rows(RGBA.astype(np.uint16) * 257))),
        over_white(STORED, ALPHA),
        1,
    ),
    "16-bit gray png, one gray transparent": (
        written(png(9, 6, 16, 0, deep_rows(SIXTEEN), chunk(b"tRNS", KEY))),
        gray(np.where(SIXTEEN[0, 0] == SIXTEEN, 255, GRAY)),
        0,
    ),
    "float tiff": (written(tiff(GRAY.astype(np.float32) / 255, 32, kind=3), "tif"), gray(GRAY), 0),
    "cmyk jpeg": (saved(Image.new("CMYK", (9, 6), (0, 255, 255, 0)), "jpg"), np.full((6, 9, 3), (255, 0, 0)), 4),
    "cmyk tiff": (saved(Image.new("CMYK", (9, 6), (0, 255, 255, 0)), "tif"), np.full((6, 9, 3), (255, 0, 0)), 1),
    "gray with alpha": (saved(Image.fromarray(np.dstack([GRAY, ALPHA]))), over_white(gray(GRAY), ALPHA), 1),
    "rgba": (saved(Image.fromarray(RGBA)), over_white(STORED, ALPHA), 1),
    "rgba webp": (saved(Image.fromarray(RGBA), "webp", lossless=True, exact=True), over_white(STORED, ALPHA), 1),
    "palette": (saved(PALETTE), np.asarray(PALETTE.convert("RGB")), 0),
    "palette with transparency": (
        saved(PALETTE, transparency=bytes([0] * 256)),
        np.full((6, 9, 3), 255),
        0,
    ),
    "one bit": (saved(Image.fromarray(GRAY > 127)), gray(np.where(GRAY > 127, 255, 0)), 0),
    "animated gif": (saved(FRAMES[0], "gif", **MOVING), FIRST, 0),
    "animated webp": (saved(FRAMES[0], "webp", lossless=True, **MOVING), FIRST, 0),
    "animated png": (saved(FRAMES[0], "png", **MOVING), FIRST, 0),
    "1 x 1": (saved(Image.fromarray(STORED[:1, :1])), STORED[:1, :1], 0),
    "1 x N": (saved(Image.fromarray(np.tile(STORED[:1], (1, 5000, 1)))), np.tile(STORED[:1], (1, 5000, 1)), 0),
    "a png called jpg": (saved(Image.fromarray(STORED), "jpg", format="PNG"), STORED, 0),
}
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
FAR = np.array([[0.0, 0.5], [1.0, 300.0]], np.float32)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\nshowpage\n"

# how the file is made, and words of the reason
REFUSED = {
    "empty": (written(b""), "cannot be read as an image"),
    "text called jpg": (written(b"no image\n", "jpg"), "cannot be read as an image"),
    "html called png": (written(b"<html>404</html>"), "cannot be read as an image"),
    "numpy array": (written(b"\x93NUMPY\x01\x00v\x00" + bytes(200)), "cannot be read as an image"),
    "half a jpeg": (cut(saved(NOISE, "jpg"), 0.5), "truncated"),
    "half a png": (cut(saved(NOISE), 0.5), "truncated"),
    "head of a png": (cut(saved(NOISE), 0.01), "cannot be read as an image"),
    "half a webp": (cut(saved(NOISE, "webp"), 0.5), "cannot be read as an image"),
    "half a tiff": (cut(saved(NOISE, "tif"), 0.5), "cannot be read as an image"),
    "half a gif": (cut(saved(NOISE, "gif"), 0.5), "truncated"),
    "half a bmp": (cut(saved(NOISE, "bmp"), 0.5), "truncated"),
    "bomb": (written(png(20_000, 6_000, 8, 2, b"")), f"20000 x 6000 pixels; at most {MAX_PIXELS}"),
    "bomb for pillow": (written(png(60_000, 60_000, 8, 2, b"")), f"at most {MAX_PIXELS}"),
    "no width": (written(png(0, 6, 8, 2, b"")), "cannot be read as an image"),
    "huge width": (written(png(2**31 - 1, 2**31 - 1, 8, 2, b"")), "at most"),
    "nan tiff": (
        written(tiff(np.full((2, 2), np.nan, np.float32), 32, kind=3), "tif"),
        "range from nan to nan; 0 to 1",
    ),
    "infinite tiff": (written(tiff(np.full((2, 2), np.inf, np.float32), 32, kind=3), "tif"), "range from inf to inf"),
    "float tiff of 0 to 300": (written(tiff(FAR, 32, kind=3), "tif"), "range from 0 to 300; 0 to 1 is needed"),
    "float tiff below 0": (written(tiff(-FAR, 32, kind=3), "tif"), "range from -300 to"),
    "32-bit tiff": (written(tiff(GRAY.astype(np.uint32), 32), "tif"), "32-bit integers have no known white"),
    "signed 16-bit tiff": (written(tiff(GRAY.astype(np.int16), 16, kind=2), "tif"), "no known white"),
    "postscript called png": (written(EPS), "cannot be read as an image"),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_an_awkward_image_is_read_right(tmp_path, kind):
    make, expected, tolerance = RIGHT[kind]
    found = read_image(make(tmp_path))
    assert found.dtype == np.uint8 and found.shape == expected.shape
    np.testing.assert_allclose(found.astype(float), expected, atol=tolerance)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_image_is_refused_in_one_line_with_its_path(tmp_path, kind, recwarn):
    make, words = REFUSED[kind]
    path = make(tmp_path)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message
    assert not recwarn.list


def test_in_a_run_every_bad_image_is_a_failed_record_and_no_good_one_is_lost(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    folder = tmp_path / "photos"
    folder.mkdir()
    for kind, (make, *_) in {**RIGHT, **REFUSED}.items():
        path = make(made)
        path.rename(folder / f"{kind.replace(' ', '_')}{path.suffix}")
    spec = ac.BenchmarkSpec(
        models=("demo/cnn",), methods=("cam",), metrics=("sparseness",), data=str(folder), timing=False
    )
    run = ac.run_benchmark(spec, tmp_path / "run")
    records = run.records()
    status = records.groupby("image")["status"].agg(set).to_dict()
    by_kind = {Path(name).stem.replace("_", " "): found for name, found in status.items()}
    assert {kind for kind, found in by_kind.items() if found == {"ok"}} == set(RIGHT)
    assert {kind for kind, found in by_kind.items() if found == {"failed"}} == set(REFUSED)
    failed = records[records.status == "failed"]
    assert failed.value.isna().all() and failed.detail.str.contains(": ").all()
    assert records[records.status == "ok"].value.notna().all()


def test_one_path_stands_for_a_list_of_one(tmp_path):
    model = ac.load_model("demo/cnn@random")
    path = saved(Image.fromarray(STORED))(tmp_path)
    assert torch.equal(load_images(path, model), load_images([str(path)], model))


@pytest.mark.parametrize(
    ("paths", "words"),
    [([], "no image was given"), ([None], "None: cannot be read"), (["a\0b.png"], r"a\\x00b.png: cannot be read")],
)
def test_what_is_no_path_is_refused(paths, words):
    with pytest.raises(ImageError, match=words):
        load_images(paths, ac.load_model("demo/cnn@random"))


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 90_000)])
def test_a_very_thin_image_takes_no_more_memory_than_others(shape, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: asked.append(size) or resize(self, size, *a, **k)
    )
    found = fit_image(picture, Preprocessing((224, 224), crop=0.875))
    assert found.shape == (224, 224, 3) and max(w * h for w, h in asked) <= preprocessing.LARGEST


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (64, 64)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_only_the_part_kept_is_resized_alike(shape, interpolation, monkeypatch):
    rows, columns = np.mgrid[
        : shape[0], : shape[1]
    ]  # smooth: a filter that overshoots is clipped between its two passes
    picture = np.stack([128 + 90 * np.sin(rows / 9 + i) * np.cos(columns / 7) for i in range(3)], axis=2).astype(
        np.uint8
    )
    how = Preprocessing((56, 56), crop=0.875, interpolation=interpolation)
    whole = fit_image(picture, how).astype(int)
    monkeypatch.setattr(preprocessing, "LARGEST", 0)
    assert np.abs(fit_image(picture, how).astype(int) - whole).max() <= 2


def test_two_threads_read_alike(tmp_path):
    path, found = saved(NOISE, "jpg")(tmp_path), []
    workers = [threading.Thread(target=lambda: found.append(read_image(path))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 and all(np.array_equal(one, found[0]) for one in found)


def test_a_tiff_tag_of_another_type_is_no_crash(tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[274] = 6
    path = saved(Image.fromarray(STORED), "tif", tiffinfo=info)(tmp_path)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[6])
