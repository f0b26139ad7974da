"""Damaged images and specs, seeded: `python benchmarks/fuzz.py [--cases 100000] [--seed 0]`, minutes on one core.

Three cases of four are a small valid file of some format with bytes changed, cut, repeated or spliced in from another
file (of a PNG the checksums are often made right again, or no decoder would see the damage); `read_image` must give
an image or an ImageError. The fourth is a spec, as TOML text damaged alike or as values of every type; it must give a
BenchmarkSpec whose names resolve or an error of this package. Any other exception, a warning, a message of more than one
line, or more than ten seconds is a find: it is printed with the case that makes it again, and the exit code is 1.
"""

import argparse
import datetime
import io
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attncompare.benchmark.plan import check_names, chosen_methods, options_of
from attncompare.benchmark.records import cell_key
from attncompare.benchmark.spec import BenchmarkSpec, make_spec
from attncompare.data.images import read_image
from attncompare.errors import AttnCompareError, ImageError
from attncompare.storage.spec import read_toml

SECONDS = 10
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass
class Found:
    """How often each outcome came, and what should not have come: one case and its traceback of each kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    finds: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest: float = 0.0


def picture(mode: str, side: int = 12) -> Image.Image:
    """Seeded noise in a mode of Pillow."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    if mode in ("F", "I;16"):
        gray = noise[:, :, 0]
        return Image.fromarray(gray.astype(np.float32) / 255 if mode == "F" else gray.astype(np.uint16) * 257)
    return Image.fromarray(noise, "RGBA").convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid_images() -> dict[str, list[bytes]]:
    """Small files of each format, in its modes and compressions."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    gray, color, alpha = picture("L"), picture("RGB"), picture("RGBA")
    frames = {"save_all": True, "append_images": [picture("RGB").rotate(90)]}
    tiff = [("L", None), ("RGB", "tiff_lzw"), ("RGB", "jpeg"), ("CMYK", "packbits"), ("1", "group4"), ("F", None)]
    found = {
        "PNG": [encoded(picture(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        "JPEG": [encoded(picture(mode), "JPEG") for mode in ("L", "RGB", "CMYK")],
        "GIF": [encoded(gray, "GIF"), encoded(color, "GIF", **frames), encoded(picture("P"), "GIF", transparency=3)],
        "TIFF": [encoded(picture(mode), "TIFF", compression=how) for mode, how in (*tiff, ("I;16", "tiff_deflate"))],
        "WEBP": [encoded(color, "WEBP"), encoded(alpha, "WEBP", lossless=True), encoded(color, "WEBP", **frames)],
        "BMP": [encoded(picture(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")],
        "PPM": [encoded(picture(mode), "PPM") for mode in ("1", "L", "RGB")],
    }
    found["PNG"] += [encoded(color, "PNG", exif=exif), encoded(color, "PNG", **frames)]
    found["PNG"] += [encoded(picture("P"), "PNG", transparency=bytes(range(9)))]
    found["JPEG"] += [encoded(color, "JPEG", exif=exif), encoded(color, "JPEG", progressive=True, quality=30)]
    found["TIFF"] += [encoded(color, "TIFF", exif=exif), encoded(alpha, "TIFF", compression="tiff_adobe_deflate")]
    return found


def damaged(chance: random.Random, whole: bytes, others: list[bytes]) -> bytes:
    """One to four changes; half of them fall on the first hundred bytes, where headers are."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        reach = min(len(data), 100) if chance.random() < 0.5 else len(data)
        at, length = chance.randrange(reach), chance.randint(1, 24)
        change = chance.randrange(8)
        if change <= 1:
            data[at] = chance.randrange(256) if change else data[at] ^ (1 << chance.randrange(8))
        elif change == 2:
            width = chance.choice((1, 2, 4))
            order = chance.choice(("little", "big"))
            data[at : at + width] = (chance.choice(EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, order)
        elif change == 3:
            del data[chance.randrange(len(data)) :]
        elif change == 4:
            del data[at : at + length]
        elif change == 5:
            data[at:at] = data[at : at + length] * chance.randint(1, 3)
        else:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[at : at + length * (change == 7)] = other[start : start + length]
    return bytes(data)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks, as far as they can be followed, have the checksum of their content."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(parts) + data[at:]


def image_case(chance: random.Random, files: dict[str, list[bytes]], folder: Path) -> str:
    """Read one damaged file; the outcome in a word."""
    kind = chance.choice(sorted(files))
    data = damaged(chance, chance.choice(files[kind]), files[chance.choice(sorted(files))] + files[kind])
    if data.startswith(PNG_SIGNATURE) and chance.random() < 0.7:
        data = with_right_checksums(data)
    path = folder / "case.png"
    path.write_bytes(data)
    try:
        image = read_image(path)
    except ImageError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1, f"message {str(error)!r}"
        return f"{kind}: refused"
    assert image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8, "not an RGB image"
    return f"{kind}: read"


SPECS = (
    'models = ["demo/cnn", "demo/vit@random"]\nmethods = ["cam", "attention_rollout"]\nlimit = 4\nseed = 3\n'
    'target = "class:disk"\nprotocol = "rise-fast"\n[options.attention_rollout]\nfusion = "max"\n',
    'models = "demo/cnn"\nmethods = "cheap"\nmetrics = ["deletion", "pointing_game", "sparseness"]\ndata = ["a.png"]\n'
    "timing = false\nrepeats = 5\ntiming_seconds = 0.5\nbatch_size = 2\n[options]\nrise = { n_masks = 20, seed = 1 }\n"
    "pointing_game = { tolerance = 3 }\n",
)
WORDS = ("all", "cheap", "demo/cnn", "cam", "grad_cam", "rise", "deletion", "label", "class:", "text:a cat", "7", "cpu")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 3, -1, 2**31, 2**63, 2**64, 10**400, -(2**63),
    0.0, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\n", "\0", "é", "\u202egnp", "\udcff", "9" * 5000, "x" * 100_000, b"rise", (), [], {}, {"cam": {}}, [[]],
    {"rise": {"n_masks": float("nan")}}, {"smooth_grad": {"noise": float("nan")}}, {1: {2: 3}}, {"options": None}, {"all"},
    object(), datetime.date(2020, 1, 1), range(3), lambda: 0, np.float32(2), np.int64(3), Path("shapes"), 1j,
)  # fmt: skip


def value(chance: random.Random, depth: int = 0) -> Any:
    """A value of any type; lists and tables hold others."""
    if depth < 3 and chance.random() < 0.3:
        inner = [value(chance, depth + 1) for _ in range(chance.randrange(4))]
        return inner if chance.random() < 0.5 else {chance.choice(WORDS): one for one in inner}
    return chance.choice(WORDS if chance.random() < 0.4 else VALUES)


def check_spec(spec: BenchmarkSpec) -> None:
    """What a run does with a spec before it loads a model."""
    check_names(spec)
    for method in chosen_methods(spec):
        cell_key({"options": options_of(spec, method)})
    spec.model_dump_json()


def spec_case(chance: random.Random, folder: Path) -> str:
    """Make a spec of damaged text or of random values; the outcome in a word."""
    try:
        if chance.random() < 0.5:
            path, texts = folder / "case.toml", [text.encode() for text in SPECS]
            path.write_bytes(damaged(chance, chance.choice(texts), texts))
            spec = make_spec(read_toml(path))
        else:
            keys = chance.sample(sorted(BenchmarkSpec.model_fields), chance.randint(1, 4))
            keys += ["color"] * (chance.random() < 0.1)
            spec = BenchmarkSpec(**{"models": ("demo/cnn",)} | {key: value(chance) for key in keys})
        check_spec(spec)
    except AttnCompareError as error:
        assert len(str(error).splitlines()) == 1, f"message {str(error)!r}"
        return f"spec: {type(error).__name__}"
    return "spec: valid"


def too_slow(*_: object) -> None:
    """The alarm clock."""
    raise TimeoutError(f"more than {SECONDS} s")


def run_case(found: Found, index: int, case: Callable[[], str]) -> None:
    """Run one case against the clock, with every warning an error."""
    start = time.perf_counter()
    signal.alarm(SECONDS)
    try:
        found.outcomes[case()] += 1
    except BaseException as error:  # every kind is a find, also what is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        found.finds.setdefault(key, (index, "".join(traceback.format_exception(error)[-6:])))
        found.outcomes[f"FIND {key}"] += 1
    finally:
        signal.alarm(0)
    found.slowest = max(found.slowest, time.perf_counter() - start)


def fuzz(cases: int, seed: int = 0, first: int = 0) -> Found:
    """Run cases `first` to `first + cases`; case i depends on the seed and i only."""
    found, files = Found(), valid_images()
    before = signal.signal(signal.SIGALRM, too_slow)
    try:
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("error")
            folder = Path(name)
            for index in range(first, first + cases):
                chance = random.Random(f"{seed} {index}")
                if index % 4 == 3:
                    run_case(found, index, lambda chance=chance: spec_case(chance, folder))
                else:
                    run_case(found, index, lambda chance=chance: image_case(chance, files, folder))
    finally:
        signal.signal(signal.SIGALRM, before)
    return found


def main() -> int:
    """Run, print the outcomes and the finds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case, to run a find again")
    given = parser.parse_args()
    start = time.perf_counter()
    found = fuzz(given.cases, given.seed, given.first)
    for outcome, count in sorted(found.outcomes.items()):
        print(f"{count:8d}  {outcome}")
    for key, (index, trace) in found.finds.items():
        print(f"\nFIND {key}: --seed {given.seed} --first {index} --cases 1\n{trace}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{given.cases} cases, {len(found.finds)} kinds of finds, {time.perf_counter() - start:.0f} s, "
        f"slowest {found.slowest:.2f} s, peak memory {peak:.2f} GiB"
    )
    return 1 if found.finds else 0


if __name__ == "__main__":
    sys.exit(main())
