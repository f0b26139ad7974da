"""Maps are kept in half the space, and as exact as anyone can see, however small or large their values."""

import io

import numpy as np
import pytest
import torch

from attncompare.benchmark.saved import MapArchive, to_half
from attncompare.errors import ResultFormatError

KEY = "ab" * 32


def archived(folder, values):
    archive = MapArchive(folder)
    archive.write(KEY, "demo/cnn", "saliency", {"cat.png": torch.from_numpy(values)}, {"cat.png": "cat"})
    return archive.read(KEY).maps["cat.png"]


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-9, 1.0, 65504.0, 1e9, 3e38])
@pytest.mark.parametrize("shift", [0.0, -0.5, 5.0], ids=["positive", "signed", "far from zero"])
def test_a_map_keeps_its_values_whatever_their_size(tmp_path, size, shift):
    drawn = np.random.default_rng(0).random((14, 14)) + shift
    values = (drawn / np.abs(drawn).max() * size).astype(np.float32)
    found = archived(tmp_path, values)
    assert found.dtype == np.float32
    spread = values.max().astype(np.float64) - values.min()
    assert np.abs(found.astype(np.float64) - values).max() <= spread / 4000 + np.spacing(np.abs(values).max())


@pytest.mark.parametrize("value", [0.0, 1e-12, -7.25, 3e38])
def test_a_constant_map_is_kept_exactly(tmp_path, value):
    values = np.full((3, 3), value, np.float32)
    np.testing.assert_array_equal(archived(tmp_path, values), values)


def test_zeros_and_signs_stay(tmp_path):
    values = np.array([[0.0, 1e-3, -1e-3, 2.0], [0.0, -4.0, 0.5, 0.0]], np.float32)
    np.testing.assert_array_equal(np.sign(archived(tmp_path, values)), np.sign(values))


def test_what_is_stored_is_float16():
    half, scale, offset = to_half(np.array([[1e-9, 3e-9]], np.float32))
    assert half.dtype == np.float16 and half.tolist() == [[0.0, 1.0]]
    assert (scale, offset) == (pytest.approx(2e-9), pytest.approx(1e-9))


def test_the_float32_maps_of_earlier_versions_are_read(tmp_path):
    values = np.random.default_rng(0).random((7, 7), np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, map0=values, names=np.array(["a"]), classes=np.array(["b"]), who=np.array(["demo/cnn", "cam"])
    )
    archive = MapArchive(tmp_path)
    archive.files.write(KEY, buffer.getvalue())
    np.testing.assert_array_equal(archive.read(KEY).maps["a"], values)


def test_damage_anywhere_is_noticed_or_harmless(tmp_path):
    values = np.random.default_rng(0).random((6, 6), np.float32)
    whole = archived(tmp_path, values)
    archive = MapArchive(tmp_path)
    content = archive.path(KEY).read_bytes()
    noticed = 0
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        archive.path(KEY).write_bytes(damaged)
        if not archive.holds(KEY):
            noticed += 1
            continue
        np.testing.assert_array_equal(archive.read(KEY).maps["cat.png"], whole)
    assert noticed > len(content) / 7 / 4


@pytest.mark.parametrize("content", [b"", b"PK"])
def test_a_truncated_archive_is_refused(tmp_path, content):
    archive = MapArchive(tmp_path)
    archive.files.write(KEY, content)
    assert archive.exists(KEY) and not archive.holds(KEY)
    with pytest.raises(ResultFormatError, match="run the benchmark again"):
        archive.read(KEY)
