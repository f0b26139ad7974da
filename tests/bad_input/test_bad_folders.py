"""Folders and file names of every awkward kind: each image has its records, and none is taken for another."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attncompare as ac
from attncompare.data.datasets import open_dataset
from attncompare.errors import ImageError, SpecError
from attncompare.reporting.gallery import Gallery
from attncompare.reporting.html import write_report
from attncompare.reporting.tables import FORMATS, table
from attncompare.storage.names import slug


def picture(path: Path, value: int = 90) -> Path:
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, format="PNG")
    return path


def loop(path: Path) -> None:
    path.symlink_to(path)


# what lies in a folder beside a good image under a name that ends as images do, and words of the reason
IN_THE_WAY = {
    "folder.jpg": (Path.mkdir, "it is no regular file"),
    "pipe.png": (os.mkfifo, "it is no regular file"),
    "loop.png": (loop, "cannot be read as an image"),
    "broken.png": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "folder_link.png": (lambda path: path.symlink_to("/"), "it is no regular file"),
    "null.png": (lambda path: path.symlink_to("/dev/null"), "it is no regular file"),
    "endless.png": (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
    "empty.png": (Path.touch, "cannot be read as an image"),
    "phone.heic": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic"), "cannot be read as an image"),
    "drawing.eps": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot be read as an image"),
}


def test_what_is_no_file_is_a_failed_record_and_waits_for_nothing(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "good.png")
    for name, (make, _) in IN_THE_WAY.items():
        make(folder / name)
    spec = ac.BenchmarkSpec(
        models=("demo/cnn",), methods=("cam",), metrics=("sparseness",), data=str(folder), timing=False
    )
    records = ac.run_benchmark(spec, tmp_path / "run").records()
    details = records[records.status == "failed"].groupby("image").detail.first().to_dict()
    assert details.keys() == IN_THE_WAY.keys()
    assert all(words in details[name] for name, (_, words) in IN_THE_WAY.items())
    assert set(records[records.status == "ok"].image) == {"good.png"}


def refused_access(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


REFUSED = {
    "empty": (lambda path: path.mkdir(), "holds no image"),
    "of other files": (lambda path: (path.mkdir(), (path / "a.txt").touch()), "holds no image"),
    "missing": (lambda path: None, "neither 'shapes', 'photos' nor"),
    "loop": (loop, "neither 'shapes', 'photos' nor"),
    "pipe": (os.mkfifo, "neither 'shapes', 'photos' nor"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_without_images_is_refused(tmp_path, kind):
    make, words = REFUSED[kind]
    make(tmp_path / "photos")
    with pytest.raises(SpecError, match=words):
        open_dataset(str(tmp_path / "photos"))


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", refused_access)  # chmod does not stop root
    with pytest.raises(SpecError, match="cannot be listed: Permission denied"):
        open_dataset(str(tmp_path))


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refused_access)
    with pytest.raises(ImageError, match=r"a\.png: .*Permission denied"):
        open_dataset(str(path)).load("a.png")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "~nobody-here/x", "\udcff", "a\n/b"])
def test_a_name_no_file_can_have_is_refused(name):
    with pytest.raises(SpecError) as caught:
        open_dataset(name)
    assert str(caught.value).isprintable()
    with pytest.raises(SpecError, match="no such image file"):
        open_dataset((name or "nothing",))


@pytest.mark.parametrize("again", ["a.png", "./a.png", "../photos/a.png"])
def test_a_file_listed_twice_is_refused_and_not_counted_twice(tmp_path, monkeypatch, again):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "a.png")
    monkeypatch.chdir(folder)
    with pytest.raises(SpecError, match=r"a\.png is listed twice"):
        open_dataset(("a.png", again))


SCRIPT = "<img src=x onerror=alert(1)>.png"
NAMES = (
    SCRIPT,
    "'\"&amp;.png",
    "line\nbreak.png",
    "\x1b[31mred.png",
    "-rf.png",
    "=cmd|' '!A1.png",
    "con.png",
    "NUL.png",
    "a b.png",
    "a_b.png",
    "a-b.png",
    "A-b.png",
    "..png.png",
    "猫.png",
    "犬.png",
    "\u202egnp.png",
    "שלום.png",
    "%s{0}$(x)\\.png",
    "x" * 250 + ".png",
    "x" * 249 + "y.png",
)
UNDECODABLE = b"\xff\xfe.png"


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """A run over images whose names are awkward, and the folder of them."""
    folder, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("run")
    for value, name in enumerate(NAMES):
        picture(folder / name, value)
    picture(folder / os.fsdecode(UNDECODABLE), len(NAMES))
    spec = ac.BenchmarkSpec(
        models=("demo/cnn",), methods=("cam",), metrics=("sparseness",), data=str(folder), timing=False, save_maps=True
    )
    return ac.run_benchmark(spec, out), folder


def test_every_awkward_name_has_its_record_and_its_own_picture(awkward):
    run, folder = awkward
    records, dataset = run.records(), open_dataset(str(folder))
    assert len(dataset.names) == len(NAMES) + 1
    assert set(records[records.status == "ok"].image) == set(dataset.names)
    assert all(name.isprintable() for name in dataset.names)
    assert {name for name in NAMES if name.isprintable()} < set(dataset.names)
    gallery = Gallery.open(run.folder)
    for name in dataset.names:
        np.testing.assert_array_equal(gallery.picture("demo/cnn", name), dataset.load(name).image)


def test_no_awkward_name_leaves_the_folder_of_its_run(awkward):
    run, _ = awkward
    parts = [path.relative_to(run.folder) for path in Path(run.folder).rglob("*")]
    assert len([path for path in parts if path.suffix == ".png"]) == len(NAMES) + 1
    assert all(len(part) < 130 and part.isascii() and ".." not in path.parts for path in parts for part in path.parts)


def test_no_awkward_name_becomes_markup(awkward):
    run, _ = awkward
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "onerror=alert(1)" in page and SCRIPT not in page and "<img src=x" not in page
    for kind in FORMATS:
        assert "\x1b" not in table(run.folder, kind)


def test_the_picture_of_an_earlier_version_is_found(awkward):
    run, folder = awkward
    kept = next((Path(run.folder) / "images").rglob("A-b.png-*.png"))
    earlier = kept.rename(kept.with_name("A-b.png.png"))
    try:
        np.testing.assert_array_equal(
            Gallery.open(run.folder).picture("demo/cnn", "A-b.png"), open_dataset(str(folder)).load("A-b.png").image
        )
    finally:
        earlier.rename(kept)


def test_no_two_names_share_a_file():
    pairs = [("a b", "a_b"), ("A.png", "a.png"), ("x" * 90, "x" * 91), ("猫", "犬"), ("con.png", "con-png"), ("", ".")]
    for first, second in pairs:
        assert slug(first).lower() != slug(second).lower()
    made = {slug(f"{'n' * 80}{i}") for i in range(20_000)}
    assert len(made) == 20_000
    for device in ("con", "NUL.txt", "com1.tar.gz", "Aux"):
        assert slug(device).partition(".")[0].lower() not in ("con", "nul", "com1", "aux")
