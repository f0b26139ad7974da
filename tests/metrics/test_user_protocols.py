import pytest

from attncompare.errors import SpecError
from attncompare.metrics.protocols import PROTOCOLS
from attncompare.metrics.user_protocols import get_protocol

MINE = 'cells = 7\nsteps = 49\ndeletion = "black"\ninsertion = "blur"\n'


def write(folder, text, name="mine.toml"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_defines_a_protocol(tmp_path):
    mine = get_protocol(write(tmp_path, MINE))
    assert (mine.cells, mine.steps, mine.deletion, mine.insertion, mine.until) == (7, 49, "black", "blur", 1.0)
    assert mine.count((224, 224)) == 49


def test_its_name_holds_a_hash_of_its_choices_and_of_nothing_else(tmp_path):
    mine = get_protocol(write(tmp_path, MINE))
    stem, digest = mine.name.rsplit("-", 1)
    assert stem == "mine" and len(digest) == 8 and set(digest) <= set("0123456789abcdef")
    other_order = "\n".join(reversed(MINE.splitlines()))
    assert get_protocol(write(tmp_path, "# a comment\n" + other_order)).name == mine.name
    assert get_protocol(write(tmp_path, MINE, "yours.toml")).name == f"yours-{digest}"
    for changed in ("cells = 8", "steps = 28", 'deletion = "mean"'):
        key = changed.split()[0]
        lines = [changed if line.startswith(key) else line for line in MINE.splitlines()]
        assert get_protocol(write(tmp_path, "\n".join(lines))).name.rsplit("-", 1)[1] != digest


def test_a_built_in_protocol_can_be_written_down(tmp_path):
    text = 'steps = 10\ndeletion = "black"\nuntil = 0.9\nscore = "argmax"\n'
    written, built_in = get_protocol(write(tmp_path, text)).describe(), PROTOCOLS["chefer"].describe()
    assert {**written, "name": "chefer"} == built_in


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells = 7", "deletion is missing"),
        ('deletion = "gray"', "deletion"),
        ('deletion = "mean"\nstpes = 3', "unknown key 'stpes'; known: cells"),
        ('deletion = "mean"\nname = "rise"', "unknown key 'name'"),
        ('deletion = "mean"\nversion = 3', "unknown key 'version'"),
        ('deletion = "mean"\nsteps = 0', "steps must lie between 1"),
        ('deletion = "mean"\nsteps = 2.5', "steps"),
        ('deletion = "mean"\ncells = "7"', "cells"),
        ('deletion = "mean"\ncells = 0', "cells must lie between 1"),
        ('deletion = "mean"\nuntil = 1.5', "until must lie between 0 and 1"),
        ('deletion = "mean"\nsteps = 5\nuntil = 0.1', "no step lies before until"),
        ('deletion = "mean"\nuntil = 0.0', "no step lies before until"),
        ('deletion = "mean"\nscore = "logit"', "score"),
        ('deletion = "mean', "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, text, message):
    with pytest.raises(SpecError, match=message) as error:
        get_protocol(write(tmp_path, text))
    assert "mine.toml" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        get_protocol(str(tmp_path / "none.toml"))
