"""Specs of every wrong kind: one line that names the key, from Python, from TOML and from the command line."""

import datetime
import json

import numpy as np
import pytest
from command_line import run

import attncompare as ac
from attncompare.benchmark.spec import BenchmarkSpec
from attncompare.errors import AttnCompareError, SpecError, one_line
from attncompare.storage.spec import read_toml

# values of a spec beside models = demo/cnn, and words of the refusal
WRONG = {
    "unknown key": ({"color": 1}, "unknown key 'color'; known: backend, batch_size"),
    "no models": ({"models": ()}, "models: "),
    "models a number": ({"models": 3}, "models: "),
    "a model twice": ({"models": ("demo/cnn", "demo/cnn")}, "demo/cnn is listed twice"),
    "a method twice": ({"methods": ["cam", "cam"]}, "cam is listed twice"),
    "limit zero": ({"limit": 0}, "limit: .*found 0"),
    "limit negative": ({"limit": -3}, "limit: .*found -3"),
    "limit true": ({"limit": True}, "limit: .*found True"),
    "limit as text": ({"limit": "4"}, "limit: .*found '4'"),
    "limit a fraction": ({"limit": 2.0}, "limit: .*found 2.0"),
    "limit huge": ({"limit": 10**400}, "limit: "),
    "seed negative": ({"seed": -1}, "seed: .*found -1"),
    "seed huge": ({"seed": 2**70}, "seed: .*less than or equal to 4294967295"),
    "seed a fraction": ({"seed": 1.5}, "seed: "),
    "threads huge": ({"threads": 10**9}, "threads: .*1024"),
    "batch zero": ({"batch_size": 0}, "batch_size: "),
    "batch huge": ({"batch_size": 2**64}, "batch_size: "),
    "repeats two": ({"repeats": 2}, "repeats: "),
    "seconds nan": ({"timing_seconds": float("nan")}, "timing_seconds: .*found nan"),
    "seconds infinite": ({"timing_seconds": float("inf")}, "timing_seconds: .*found inf"),
    "seconds true": ({"timing_seconds": True}, "timing_seconds: "),
    "dtype": ({"dtype": "float64"}, "dtype: .*'float32'"),
    "options a list": ({"options": ["layer"]}, "options: "),
    "options nan": ({"options": {"rise": {"p_keep": float("nan")}}}, "cannot be written down as JSON"),
    "options a set": ({"options": {"rise": {"n_masks": {1, 2}}}}, "cannot be written down as JSON"),
    "options a function": ({"options": {"rise": {"n_masks": len}}}, "cannot be written down as JSON"),
    "data no utf-8": ({"data": "\udcff"}, r"cannot be written down as JSON.*\\udcff"),
    "data a number": ({"data": 3}, "data"),
    "target negative": ({"target": -1}, "target"),
    "target word": ({"target": "best"}, "target: .*class index"),
    "target of line breaks": ({"target": "a\nb\x1b[31m"}, r"found 'a\\nb\\x1b\[31m'"),
    "target endless": ({"target": "9" * 5000}, "target: "),
    "a value of any length": ({"device": ["x" * 100_000]}, "device: "),
    "numpy": ({"limit": np.float32(2)}, "limit: "),
    "date": ({"seed": datetime.date(2020, 1, 1)}, "seed: "),
}


def checked(values):
    from attncompare.benchmark.plan import check_names

    spec = BenchmarkSpec(**{"models": ("demo/cnn",)} | values)
    check_names(spec)
    return spec


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_spec_is_refused_in_one_line(kind):
    values, words = WRONG[kind]
    with pytest.raises(SpecError, match=words) as caught:
        checked(values)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) <= 2000


TOML = {
    "no utf-8": (b"models = '\xff'", "utf-8"),
    "utf-16": ("models = 'demo/cnn'".encode("utf-16"), "utf-8"),
    "a key twice": (b"limit = 1\nlimit = 2", "overwrite"),
    "open list": (b"models = [", "cannot be read"),
    "a number without end": (b"limit = " + b"9" * 5000, "cannot be read"),
    "nested without end": (b"models = " + b"[" * 100_000, "cannot be read"),
    "nul": (b"models = '\0'", "cannot be read"),
    "json": (b'{"models": ["demo/cnn"]}', "cannot be read"),
    "a png": (b"\x89PNG\r\n\x1a\n", "cannot be read"),
}


@pytest.mark.parametrize("kind", TOML)
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, kind):
    content, words = TOML[kind]
    path = tmp_path / "spec.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as caught:
        read_toml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text("limit = 3\n", encoding="utf-8-sig")
    assert read_toml(path) == {"limit": 3}


@pytest.mark.parametrize("content", [None, b"deletion = '\xff'", b"steps = " + b"9" * 5000, b"deletion = 1\ncolor = 2"])
def test_a_protocol_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SpecError, match=r"mine\.toml"):
        checked({"protocol": str(path)})


COMMANDS = {
    "a folder as spec": (["bench", "."], "cannot be read"),
    "a spec that is missing": (["bench", "nowhere.toml"], "cannot be read"),
    "a name no file can have": (["bench", "-m", "demo/cnn", "--data", "a" * 300], "is neither"),
    "a home that is none": (["bench", "-m", "demo/cnn", "--data", "~nobody/photos"], "is neither"),
    "shapes without end": (["bench", "-m", "demo/cnn", "--limit", "999999999"], "there are 1000000 shapes"),
    "limit no number": (["bench", "-m", "demo/cnn", "--limit", "x"], "--limit"),
    "limit beyond int64": (["bench", "-m", "demo/cnn", "--limit", "9" * 30], "limit"),
    "seed negative": (["bench", "-m", "demo/cnn", "--seed", "-1"], "seed"),
    "option nan": (["bench", "-m", "demo/cnn", "--option", "smooth_grad.sigma=NaN"], "(found as a whole)"),
    "option nested": (["bench", "-m", "demo/cnn", "--option", "rise.n_masks=[1, {}]"], "rise.n_masks must be an int"),
    "explain a long name": (["explain", "a" * 300], "no such image file"),
    "explain a folder": (["explain", "."], "no such image file"),
    "explain one file twice": (["explain", "IMAGE", "./IMAGE"], "listed twice"),
    "a model with line breaks": (["doctor", "demo/\n\x1b[2J"], "unknown model"),
    "an option with line breaks": (["bench", "--co\nlour"], "(see --help)"),
    "a leading dash": (["explain", "--", "-rf.png"], "no such image file: -rf.png"),
    "figure into nothing": (["figure", "nowhere", "grid", "-o", "a.exe"], "the ending must be"),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_wrong_command_is_one_line_and_exit_1(tmp_path, monkeypatch, kind):
    from PIL import Image

    arguments, words = COMMANDS[kind]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    told = run(*(one.replace("IMAGE", "image.png") for one in arguments))
    code, out, errors = told.returncode, told.stdout, told.stderr
    assert (code, out) == (1, "")
    assert errors.startswith("error: ") and words in errors
    assert errors.count("\n") == 1 and "\x1b" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_a_valid_spec_is_stored_as_it_was_given():
    spec = checked({"target": "class:disk", "options": {"grad_cam": {"layer": "2"}}, "data": ["é.png"]})
    assert BenchmarkSpec(**json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize("text", ["plain", "a\nb", "\x1b[31m", "\u202egnp.exe", "\udcff", "x" * 9000])
def test_an_error_is_one_line_that_can_be_printed(text):
    shown = str(AttnCompareError(text))
    assert shown.isprintable() and shown.encode() and len(shown) <= 2000
    assert str(AttnCompareError(shown)) == shown and one_line(shown) == shown


def test_a_spec_of_python_is_refused_as_one_of_toml():
    with pytest.raises(SpecError, match="unknown key 'color'"):
        ac.BenchmarkSpec(models=("demo/cnn",), color="red")
