"""The rules that keep the package readable: which way imports point, who may import which library, what loads at start."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).parents[1] / "attncompare"
FLOORS = (
    "errors registry maps progress storage state environment __version__",
    "inspection",
    "models",
    "backward",
    "capture",
    "signals",
    "methods metrics protocols",
    "explain catalogue arguments",
    "data modules",
    "evaluation tuning",
    "stats",
    "benchmark",
    "training",
    "studies",
    "reporting",
    "cli demo",
)
"""What a module may import: what stands on its own line or above it."""
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
SHOWS_ITSELF = ("registry", "reporting")
SHOWN = {"html.write_report"}
"""The one hook through which a map or a run finds what draws it: `registry.report_function`."""
ONLY_IN = {
    "timm": "models/sources/timm.py",
    "transformers": "models/sources/huggingface.py",
    "torchvision": "models/sources/torchvision.py",
    "matplotlib": "reporting/",
    "plotly": "reporting/",
    "jinja2": "reporting/",
    "ray": "benchmark/engines/ray.py",
    "openvino": "benchmark/openvino.py",
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """The full names that a module imports, in every form and at every depth: `from attncompare import x` is x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            yield from (name for name in map(literal, node.args[:1]) if name)


def literal(node):
    """What is known of a text: the part of an f-string before its first value."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return first.value.rstrip(".") if isinstance(first, ast.Constant) else ""


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path):
    """The parts of the package that a module imports; the package's own names load on request and are no import."""
    names = [name.split(".") for name in imports(path) if name.startswith("attncompare.")]
    return {bits[1] for bits in names} if part(path) != "__init__" else set()


def test_every_part_has_its_floor():
    assert {part(path) for path in modules()} <= FLOOR.keys() | {"__init__"}


def test_imports_point_one_way():
    upward = {
        (part(path), target) for path in modules() for target in own_imports(path) if FLOOR[target] > FLOOR[part(path)]
    }
    assert upward == {SHOWS_ITSELF}


def test_only_what_shows_itself_asks_for_what_draws_it():
    calls = [node for path in modules() for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [node.args[0].value for node in calls if ast.unparse(node.func) == "report_function"]
    assert set(names) == SHOWN


def test_no_import_of_the_package_goes_unread(tmp_path):
    source = """
import attncompare.cli
import attncompare.demo as d
from attncompare import reporting, tuning as settings
from attncompare.benchmark.run import Run
def late():
    from attncompare import studies
    import_module("attncompare.training")
    import_module(f"attncompare.capture.{name}")
if TYPE_CHECKING:
    from attncompare import catalogue
"""
    path = tmp_path / "module.py"
    path.write_text(source)
    parts = {name.split(".")[1] for name in imports(path)}
    assert parts == {"cli", "demo", "reporting", "tuning", "benchmark", "studies", "training", "capture", "catalogue"}


def file_of(name):
    """The module that a full name is, or lies in; None for a name of the package itself."""
    bits = name.split(".")[1:]
    for end in range(len(bits), 0, -1):
        place = PACKAGE.joinpath(*bits[:end])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.exists():
                return path
    return None


def test_no_modules_import_each_other_in_a_circle():
    own = {path: [name for name in imports(path) if name.startswith("attncompare.")] for path in modules()}
    edges = {path: {file_of(name) for name in names} - {None, path} for path, names in own.items()}
    circles = [c for c in nx.strongly_connected_components(nx.DiGraph(edges)) if len(c) > 1]
    assert circles == [], [sorted(str(path.relative_to(PACKAGE)) for path in circle) for circle in circles]


def test_each_model_and_drawing_library_has_one_place():
    for path in modules():
        for name in imports(path):
            allowed = ONLY_IN.get(name.split(".")[0])
            assert allowed is None or str(path.relative_to(PACKAGE)).startswith(allowed), f"{path} imports {name}"


def is_machinery(path):
    """Whether a file registers no method and no metric."""
    return not any(line.startswith(("@method(", "@metric(")) for line in path.read_text().splitlines())


def test_methods_and_metrics_do_not_import_each_other():
    for folder in ("methods", "metrics"):
        for path in (PACKAGE / folder).glob("[!_]*.py"):
            others = {n.rsplit(".", 1)[0] for n in imports(path) if n.startswith(f"attncompare.{folder}.")}
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


def test_type_checkers_read_the_packages_types():
    assert (PACKAGE / "py.typed").read_text() == ""
