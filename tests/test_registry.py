import pytest

from attncompare.errors import UnknownNameError
from attncompare.registry import Registry


def package_of_colors(folder, name: str, **modules: str):
    """A package on disk whose modules add themselves to its `colors` registry, as methods and metrics do."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(
        f"from attncompare.registry import Registry\ncolors = Registry('color', {name!r})\n"
    )
    for module, text in modules.items():
        (package / f"{module}.py").write_text(f"from {name} import colors\n{text}\n")
    return package


@pytest.fixture
def importable(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_name_can_be_taken_once():
    colors = Registry("color", "colorsys")
    colors.add("red", 1)
    with pytest.raises(ValueError, match="color 'red' is registered twice"):
        colors.add("red", 2)
    assert colors.get("red") == 1


def test_members_are_found_by_importing_each_public_module(importable):
    package_of_colors(
        importable,
        "found_colors",
        red="colors.add('red', 1)",
        blue="colors.add('blue', 2)",
        _base="raise ImportError",
    )
    from found_colors import colors

    assert colors.names() == ["blue", "red"]
    assert list(colors) == [2, 1]
    assert colors.get("red") == 1


def test_modules_are_imported_only_when_a_name_is_asked_for(importable):
    package_of_colors(importable, "broken_colors", red="raise RuntimeError('imported')")
    from broken_colors import colors

    with pytest.raises(RuntimeError, match="imported"):
        colors.names()


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    colors = Registry("color", "colorsys")
    for name in ("crimson", "scarlet", "navy"):
        colors.add(name, name)
    with pytest.raises(UnknownNameError, match=r"^unknown color 'crimsn'; did you mean crimson\?$"):
        colors.get("crimsn")


def test_names_are_sorted_however_they_were_added():
    colors = Registry("color", "colorsys")
    for name in ("c", "a", "b"):
        colors.add(name, name.upper())
    assert colors.names() == ["a", "b", "c"]
    assert list(colors) == ["A", "B", "C"]


def test_a_draft_can_be_written_anew_but_takes_no_name_of_the_package():
    colors = Registry("color", "colorsys")
    colors.add("red", 1)
    colors.add("blue", 2, draft=True)
    colors.add("blue", 3, draft=True)
    assert colors.get("blue") == 3
    for name, draft in (("red", True), ("blue", False)):
        with pytest.raises(ValueError, match="twice"):
            colors.add(name, 4, draft=draft)
