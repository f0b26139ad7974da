import pytest

from attncompare.errors import UnknownNameError
from attncompare.registry import Registry


def package_of_colours(folder, name: str, **modules: str):
    """A package on disk whose modules add themselves to its `colours` registry, as methods and metrics do."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(
        f"from attncompare.registry import Registry\ncolours = Registry('colour', {name!r})\n"
    )
    for module, text in modules.items():
        (package / f"{module}.py").write_text(f"from {name} import colours\n{text}\n")
    return package


@pytest.fixture
def importable(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_name_can_be_taken_once():
    colours = Registry("colour", "colorsys")
    colours.add("red", 1)
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        colours.add("red", 2)
    assert colours.get("red") == 1


def test_members_are_found_by_importing_each_public_module(importable):
    package_of_colours(
        importable,
        "found_colours",
        red="colours.add('red', 1)",
        blue="colours.add('blue', 2)",
        _base="raise ImportError",
    )
    from found_colours import colours

    assert colours.names() == ["blue", "red"]
    assert list(colours) == [2, 1]
    assert colours.get("red") == 1


def test_modules_are_imported_only_when_a_name_is_asked_for(importable):
    package_of_colours(importable, "broken_colours", red="raise RuntimeError('imported')")
    from broken_colours import colours

    with pytest.raises(RuntimeError, match="imported"):
        colours.names()


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    colours = Registry("colour", "colorsys")
    for name in ("crimson", "scarlet", "navy"):
        colours.add(name, name)
    with pytest.raises(UnknownNameError, match=r"^unknown colour 'crimsn'; did you mean crimson\?$"):
        colours.get("crimsn")


def test_names_are_sorted_however_they_were_added():
    colours = Registry("colour", "colorsys")
    for name in ("c", "a", "b"):
        colours.add(name, name.upper())
    assert colours.names() == ["a", "b", "c"]
    assert list(colours) == ["A", "B", "C"]


def test_a_draft_can_be_written_anew_but_takes_no_name_of_the_package():
    colours = Registry("colour", "colorsys")
    colours.add("red", 1)
    colours.add("blue", 2, draft=True)
    colours.add("blue", 3, draft=True)
    assert colours.get("blue") == 3
    for name, draft in (("red", True), ("blue", False)):
        with pytest.raises(ValueError, match="twice"):
            colours.add(name, 4, draft=draft)
