"""Images to train on: shapes, class folders, and real data sets in torchvision's own file formats."""

import hashlib
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from attncompare.data.shapes import render_shape
from attncompare.errors import ImageError, SpecError, UnknownNameError
from attncompare.models.preprocessing import Preprocessing
from attncompare.training.data import _of_set, open_training_data
from attncompare.training.spec import TrainSpec

HOW = Preprocessing(size=(16, 16))


def save_images(folder, count, value):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((20, 24, 3), value + number, np.uint8)).save(folder / f"{number:02d}.png")


def opened(**values):
    return open_training_data(TrainSpec(**values))


def test_shapes_come_from_their_three_splits():
    data = opened(train_images=5, validation_images=3, test_images=4)
    for split, part, count in (("train", data.train, 5), ("val", data.validation, 3), ("test", data.test, 4)):
        drawn = [render_shape(number, split) for number in range(count)]
        assert part.labels.tolist() == [one.label for one in drawn]
        np.testing.assert_array_equal(part.load(2)[0], drawn[2].image)
    images, labels = data.fitted(HOW).train.batch([4, 0])
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == data.train.labels[[4, 0]].tolist()


def test_a_folder_of_classes_is_split_class_by_class(tmp_path):
    for name, count, value in (("cat", 30, 0), ("dog", 10, 100), ("emu", 4, 200)):
        save_images(tmp_path / "set" / name, count, value)
    data = opened(data=str(tmp_path / "set"))
    assert data.class_names == ("cat", "dog", "emu")
    assert [np.bincount(part.labels).tolist() for part in (data.train, data.validation, data.test)] == [
        [24, 8, 2],
        [3, 1, 1],
        [3, 1, 1],
    ]
    seen = [
        int(part.load(n)[0][0, 0, 0]) for part in (data.train, data.validation, data.test) for n in range(len(part))
    ]
    assert sorted(seen) == [*range(30), *range(100, 110), *range(200, 204)]  # every image once
    assert all((value >= 100) + (value >= 200) == label for value, label in zip(seen, labels_of(data), strict=True))
    again = opened(data=str(tmp_path / "set"))
    assert [int(again.test.load(n)[0][0, 0, 0]) for n in range(5)] == [
        int(data.test.load(n)[0][0, 0, 0]) for n in range(5)
    ]


def labels_of(data):
    return np.concatenate([data.train.labels, data.validation.labels, data.test.labels])


def test_folders_named_train_val_and_test_are_taken_as_they_are(tmp_path):
    for part, value in (("train", 0), ("val", 50), ("test", 100)):
        for number, name in enumerate(("a", "b")):
            save_images(tmp_path / part / name, 4, value + 10 * number)
    data = opened(data=str(tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 8, 8]
    assert int(data.validation.load(0)[0][0, 0, 0]) == 50
    assert len(opened(data=str(tmp_path), train_images=3).train) == 3


def test_with_no_test_folder_validation_images_test_and_a_tenth_validates(tmp_path):
    for part, value in (("train", 0), ("val", 50)):
        for number, name in enumerate(("a", "b")):
            save_images(tmp_path / part / name, 10, value + 20 * number)
    data = opened(data=str(tmp_path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 20]
    assert int(data.test.load(0)[0][0, 0, 0]) == 50


def test_replaced_images_are_other_data_and_a_second_look_is_not(tmp_path):
    for name in ("cat", "dog"):
        save_images(tmp_path / name, 4, 0)
    first = opened(data=str(tmp_path)).fingerprint
    assert opened(data=str(tmp_path)).fingerprint == first
    image = tmp_path / "cat" / "01.png"
    before = image.stat()
    Image.fromarray(np.full((20, 24, 3), 77, np.uint8)).save(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # however coarse the clock of the disk is
    second = opened(data=str(tmp_path)).fingerprint
    image.rename(image.with_name("09.png"))
    assert len({first, second, opened(data=str(tmp_path)).fingerprint}) == 3


def test_what_a_training_folder_lacks_is_named_in_the_error(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            save_images(tmp_path / part / name, 1, 0)
    with pytest.raises(SpecError, match=r"class 0 has 1 image left to train on; add images, or a test/ folder$"):
        opened(data=str(tmp_path))
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(SpecError, match=r"add images, or a val/ folder$"):
        opened(data=str(tmp_path))
    with pytest.raises(SpecError, match=r"add images, or a val/ folder and a test/ folder$"):
        opened(data=str(tmp_path / "test"))


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_without_training_images_is_refused(tmp_path, part):
    for folder, names in (("train", "ab"), (part, "abcd")):
        for name in names:
            save_images(tmp_path / folder / name, 4, 0)
    with pytest.raises(SpecError, match=rf"folder .*{part} has classes .* no training images: c, d$"):
        opened(data=str(tmp_path))


def test_names_that_start_with_a_dot_are_skipped(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b", ".ipynb_checkpoints", "a/.thumbnails"):
            save_images(tmp_path / part / name, 4, 0)
        (tmp_path / part / "b" / "._00.png").write_bytes(b"of another system")
    data = opened(data=str(tmp_path))
    assert data.class_names == ("a", "b")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 2, 8]


def cifar(root, monkeypatch, per_batch=6, seed=0):
    """CIFAR-10's own files, small: five pickled training batches, one test batch, and the names; torchvision checks them."""
    from torchvision.datasets import CIFAR10

    folder, rng, sums = root / "cifar-10-batches-py", np.random.default_rng(seed), {}
    folder.mkdir(exist_ok=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    pixels = {name: rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8) for name in names}
    files = {
        name: {"data": data, "labels": [(number + k) % 2 for k in range(per_batch)], "batch_label": name}
        for number, (name, data) in enumerate(pixels.items())
    }
    files["batches.meta"] = {"label_names": ["plane", "car"]}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return pixels


def test_cifar_is_read_from_its_own_files(tmp_path, monkeypatch):
    pixels = cifar(tmp_path, monkeypatch)
    data = opened(data="torchvision:CIFAR10", root=str(tmp_path))
    assert data.class_names == ("plane", "car")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [26, 4, 6]
    image, label = data.test.load(1)
    np.testing.assert_array_equal(image, pixels["test_batch"][1].reshape(3, 32, 32).transpose(1, 2, 0))
    assert label == data.test.labels[1] == 0
    assert data.fitted(Preprocessing(size=(32, 32))).train.batch([0])[0].shape == (1, 3, 32, 32)


def test_other_pixels_in_the_files_of_a_torchvision_set_are_other_data(tmp_path, monkeypatch):
    def fingerprint(seed):
        cifar(tmp_path, monkeypatch, seed=seed)
        return opened(data="torchvision:CIFAR10", root=str(tmp_path)).fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


def test_a_torchvision_set_of_files_is_known_by_some_of_its_pictures(tmp_path):
    for name in ("a", "b"):
        save_images(tmp_path / name, 4, 0)
    first = _of_set("set", ImageFolder(tmp_path)).content
    assert _of_set("set", ImageFolder(tmp_path)).content == first
    Image.fromarray(np.full((20, 24, 3), 77, np.uint8)).save(tmp_path / "b" / "03.png")
    assert _of_set("set", ImageFolder(tmp_path)).content != first


def test_a_pickle_that_is_not_cifars_is_never_opened(tmp_path, monkeypatch):
    cifar(tmp_path, monkeypatch)
    opened_file = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (open, (str(opened_file), "w"))

    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(SpecError, match=r"torchvision:CIFAR10 is not in .*give its root, or download = true"):
        opened(data="torchvision:CIFAR10", root=str(tmp_path))
    assert not opened_file.exists()


def test_mnist_is_gray_and_read_from_its_own_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(20 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(20, 28, 28)
    for stem in ("train", "t10k"):
        head = b"".join(int(n).to_bytes(4, "big") for n in (2051, 20, 28, 28))
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = b"".join(int(n).to_bytes(4, "big") for n in (2049, 20))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(head + bytes(k % 10 for k in range(20)))
    data = opened(data="torchvision:MNIST", root=str(tmp_path))
    assert len(data.class_names) == 10
    assert len(data.train) == 10  # one of two images of each class validates
    np.testing.assert_array_equal(data.test.load(3)[0], np.repeat(images[3][:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"data": "nowhere"}, SpecError, "'nowhere' is neither 'shapes', 'torchvision:NAME' nor a folder"),
        ({"data": "torchvision:CIFAR11"}, UnknownNameError, "did you mean CIFAR10"),
        ({"data": "torchvision:CIFAR10", "root": "nowhere"}, SpecError, "is not in nowhere; give its root"),
        ({"data": "torchvision:VOCDetection"}, SpecError, "no training part with a class for every picture"),
    ],
)
def test_data_that_is_not_there_is_refused(given, kind, said):
    with pytest.raises(kind, match=said):
        opened(**given)


def test_folders_that_are_no_set_of_classes_are_refused(tmp_path):
    save_images(tmp_path / "one" / "cat", 3, 0)
    with pytest.raises(SpecError, match="has 1 sub-folders; one for each of several classes"):
        opened(data=str(tmp_path / "one"))
    (tmp_path / "one" / "dog").mkdir()
    with pytest.raises(SpecError, match="holds no image of the class dog"):
        opened(data=str(tmp_path / "one"))
    save_images(tmp_path / "two" / "cat", 3, 0)
    save_images(tmp_path / "two" / "dog", 1, 0)
    with pytest.raises(SpecError, match="class 1 has 1 image left to train on"):
        opened(data=str(tmp_path / "two"))


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    for name in ("cat", "dog"):
        save_images(tmp_path / name, 4, 0)
        (tmp_path / name / "03.png").write_bytes(b"no image")
    data = opened(data=str(tmp_path))
    with pytest.raises(ImageError, match=r"03.png: cannot be read as an image"):
        [part.load(n) for part in (data.train, data.validation, data.test) for n in range(len(part))]
