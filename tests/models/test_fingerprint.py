"""Modules that compute something else have other hashes, wherever their code was written."""

import importlib.util
import os

import pytest
from torch import nn

import attncompare as ac
from attncompare.models.fingerprint import structure_hash

CODE = """
from torch import nn

import attncompare as ac
SCALE = {scale}
def helper(x):
    return x {helper}
class Net(nn.Module):
    def forward(self, images):
        return [helper(one) for one in (images {forward},)][0] * SCALE
"""
SAME = {"scale": 1.0, "helper": "+ 1", "forward": "+ 2"}
CHANGES = ({"scale": 2.0}, {"helper": "- 1"}, {"forward": "- 2"})


def typed(**changes):
    """The class as it is at a prompt: no file holds it."""
    names = {"__name__": "typed"}
    exec(CODE.format(**SAME | changes), names)
    return names["Net"]()


def written(path, **changes):
    """The class as a file's."""
    path.write_text(CODE.format(**SAME | changes))
    spec = importlib.util.spec_from_file_location("written", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Net()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_code_without_a_file_counts(change):
    assert structure_hash(typed()) == structure_hash(typed()) != structure_hash(typed(**change))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_code_of_a_file_counts(change, tmp_path):
    first, again, other = (tmp_path / f"{name}.py" for name in ("first", "again", "other"))
    hashes = [structure_hash(written(path)) for path in (first, again)]
    assert hashes[0] == hashes[1] != structure_hash(written(other, **change))


def test_what_is_edited_while_it_runs_is_not_taken_for_what_runs(tmp_path):
    path = tmp_path / "net.py"
    net = written(path)
    path.write_text(CODE.format(**SAME | {"forward": "- 2"}))
    os.utime(path, (1, 1))  # its time does not tell
    found = structure_hash(net)
    assert found != structure_hash(written(path, forward="- 2"))


def test_two_lambdas_of_one_line_differ():
    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

    twice, thrice = (lambda x: x * 2), (lambda x: x * 3)
    assert structure_hash(Net(twice)) == structure_hash(Net(twice)) != structure_hash(Net(thrice))


def test_classes_of_libraries_count_by_name():
    assert structure_hash(nn.ReLU()) == structure_hash(nn.ReLU()) != structure_hash(nn.ReLU(inplace=True))
    assert structure_hash(nn.Conv2d(3, 4, 3)) != structure_hash(nn.Conv2d(3, 4, 3, stride=2))


def test_a_recorder_of_attention_counts_with_its_code():
    def recorder(doubled):
        names = {"ac": ac, "__name__": "typed"}
        exec(f"class Sees(ac.AttentionCalls):\n    def note(self):\n        return {doubled}", names)
        return names["Sees"]

    def wrapped(**options):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        return ac.wrap_model(net, size=(8, 8), **options).structure_hash

    assert wrapped() == wrapped(attention=ac.AttentionCalls)
    one, same, other = (wrapped(attention=recorder(doubled)) for doubled in (False, False, True))
    assert one == same
    assert len({wrapped(), one, other}) == 3


def test_a_class_that_a_module_names_counts_by_its_name(monkeypatch):
    """Its state changes: a logger's classes hold the time at which the process began."""

    class Counter:
        made = 0

    class Net(nn.Module):
        kind = Counter

        def forward(self, images):
            return Counter, images

    before = structure_hash(Net())
    monkeypatch.setattr(Counter, "made", 1)
    assert structure_hash(Net()) == before
