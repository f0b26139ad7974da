"""The rules that keep the package readable: which way imports point, who may import which library, what loads at start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "attncompare"
LEVELS = [
    {"errors", "registry", "signals", "maps", "__init__"},
    {"adapters"},
    {"capture"},
    {"methods", "loading"},
    {"metrics", "explainer", "data", "modules", "tuning"},
    {"benchmark", "reporting", "training", "studies", "catalogue"},
    {"demo"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
ONLY_IN = {
    "timm": "adapters/timm.py",
    "transformers": "adapters/huggingface.py",
    "torchvision": "adapters/torchvision.py",
    "matplotlib": "reporting/",
    "plotly": "reporting/",
    "jinja2": "reporting/",
    "ray": "benchmark/engines/ray.py",
    "openvino": "benchmark/openvino.py",
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    for name in imports(path):
        if name.startswith("attncompare.") and part(path) != "__init__":
            target = name.split(".")[1]
            assert LEVEL[target] <= LEVEL[part(path)], f"{part(path)} imports {name}: upwards"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_model_and_drawing_library_has_one_place(path):
    for name in imports(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or str(path.relative_to(PACKAGE)).startswith(allowed), f"{path} imports {name}"


def is_machinery(path):
    """Whether a file registers no method and no metric."""
    return not any(line.startswith(("@method(", "@metric(")) for line in path.read_text().splitlines())


def test_methods_and_metrics_do_not_import_each_other():
    for folder in ("methods", "metrics"):
        for path in (PACKAGE / folder).glob("[!_]*.py"):
            others = {n for n in imports(path) if n.startswith(f"attncompare.{folder}.")}
            shared = {f"attncompare.{folder}.{p.stem}" for p in (PACKAGE / folder).glob("*.py") if is_machinery(p)}
            assert others <= shared, f"{path.name} imports {others - shared}"


def test_no_file_is_a_drawer():
    assert not {path.stem for path in modules()} & {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("command", ["import attncompare", "import attncompare.cli", "import attncompare as a; dir(a)"])
def test_importing_the_package_does_not_import_torch(command):
    code = f"{command}\nimport sys; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_loads():
    import attncompare

    for name in attncompare.__all__:
        assert getattr(attncompare, name) is not None
