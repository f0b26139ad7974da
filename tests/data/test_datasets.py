from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attncompare.data.datasets import Sample, open_dataset
from attncompare.data.shapes import render_shape
from attncompare.errors import ImageError, SpecError


def gray_file(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), value).save(path)
    return path


def values_of(dataset) -> list[int]:
    return [int(dataset.load(name).image[0, 0, 0]) for name in dataset.names]


@pytest.mark.parametrize(("name", "split"), [("shapes", "test"), ("shapes-val", "val")])
def test_shapes_are_the_images_of_their_split(name, split):
    dataset = open_dataset(name, 5)
    assert len(dataset.names) == len(set(dataset.names)) == 5
    for index, sample_name in enumerate(dataset.names):
        sample, drawn = dataset.load(sample_name), render_shape(index, split)
        assert sample.name == sample_name
        assert np.array_equal(sample.image, drawn.image) and np.array_equal(sample.mask, drawn.mask)
        assert sample.label == drawn.label


def test_a_sample_is_the_same_whatever_the_limit():
    name = open_dataset("shapes", 3).names[2]
    assert open_dataset("shapes", 200).names[2] == name
    assert open_dataset("shapes", 3).load(name).content_hash == open_dataset("shapes").load(name).content_hash


def test_photos_are_real_color_images_without_a_mask():
    dataset = open_dataset("photos", 3)
    assert dataset.names[0] == "chelsea.png" and len(dataset.names) == 3
    sample = dataset.load(dataset.names[0])
    assert sample.image.dtype == np.uint8 and sample.image.shape == (300, 451, 3)
    assert sample.image.std() > 10
    assert sample.mask is None and sample.label is None


def test_all_photos_can_be_read():
    dataset = open_dataset("photos")
    assert len(dataset.names) >= 4
    assert all(dataset.load(name).image.shape[2] == 3 for name in dataset.names)


def test_a_folder_gives_its_images_sorted_and_nothing_else(tmp_path):
    for value, name in enumerate(("b.png", "a.JPG", "c.gif"), start=1):
        gray_file(tmp_path / name, 50 * value)
    (tmp_path / "notes.txt").write_text("no image")
    gray_file(tmp_path / "below" / "deep.png")
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == ("a.JPG", "b.png", "c.gif")
    assert np.allclose(values_of(dataset), [100, 50, 150], atol=2)


def test_a_limit_takes_the_first_images_of_a_folder(tmp_path):
    for name in ("c.png", "a.png", "b.png"):
        gray_file(tmp_path / name)
    assert open_dataset(str(tmp_path), 2).names == ("a.png", "b.png")
    assert open_dataset(str(tmp_path), 9).names == ("a.png", "b.png", "c.png")


def test_an_unreadable_image_stays_in_the_list_and_is_refused_when_loaded(tmp_path):
    gray_file(tmp_path / "a.png", 9)
    (tmp_path / "b.png").write_bytes(b"no image")
    dataset = open_dataset(str(tmp_path))
    assert dataset.names == ("a.png", "b.png")
    assert dataset.load("a.png").image[0, 0, 0] == 9
    with pytest.raises(ImageError, match=r"b\.png"):
        dataset.load("b.png")


def test_one_file_is_a_data_set_of_one(tmp_path):
    dataset = open_dataset(str(gray_file(tmp_path / "only.png", 7)))
    assert dataset.names == ("only.png",) and values_of(dataset) == [7]


def test_files_keep_the_order_they_are_given_in(tmp_path):
    paths = [gray_file(tmp_path / name, value) for name, value in (("z.png", 1), ("a.png", 2), ("m.png", 3))]
    dataset = open_dataset(tuple(map(str, paths)))
    assert dataset.names == ("z.png", "a.png", "m.png") and values_of(dataset) == [1, 2, 3]
    assert open_dataset(tuple(map(str, paths)), 2).names == ("z.png", "a.png")


def test_files_of_one_name_in_two_folders_are_both_kept(tmp_path):
    paths = [gray_file(tmp_path / folder / "cat.png", value) for folder, value in (("x", 1), ("y", 2))]
    assert values_of(open_dataset(tuple(map(str, paths)))) == [1, 2]


def test_no_file_is_dropped_when_names_and_folders_repeat(tmp_path):
    paths = [gray_file(tmp_path / top / "val" / "cat.png", value) for top, value in (("x", 1), ("y", 2), ("z", 3))]
    assert values_of(open_dataset(tuple(map(str, paths)))) == [1, 2, 3]


def test_missing_files_are_named(tmp_path):
    good = gray_file(tmp_path / "good.png")
    with pytest.raises(SpecError, match=r"no such image file: .*gone\.png, .*lost\.png") as caught:
        open_dataset((str(good), str(tmp_path / "gone.png"), str(tmp_path / "lost.png")))
    assert "good.png" not in str(caught.value)


def test_an_empty_list_of_files_is_refused():
    with pytest.raises(SpecError, match="none given"):
        open_dataset(())


def test_a_folder_without_images_is_refused_with_the_kinds_it_may_hold(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SpecError, match=r"holds no image .*\.png") as caught:
        open_dataset(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_name_that_is_nothing_is_refused_with_what_it_may_be(tmp_path):
    with pytest.raises(SpecError, match=r"shapes.*photos.*folder") as caught:
        open_dataset(str(tmp_path / "nothing"))
    assert "nothing" in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("name", ["shapes", "photos"])
def test_a_limit_below_one_is_refused(name, limit):
    with pytest.raises(SpecError, match=f"limit must be at least 1, not {limit}"):
        open_dataset(name, limit)


def test_a_hash_tells_pixels_and_shapes_apart_but_not_names():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    changed = pixels.copy()
    changed[1, 3, 2] += 1
    first = Sample("a", pixels).content_hash
    assert Sample("b", pixels.copy()).content_hash == first
    assert Sample("a", changed).content_hash != first
    assert Sample("a", pixels.reshape(4, 2, 3)).content_hash != first
