"""The house rules that a reader can rely on: floors, doors, owners of dependencies, sizes, docstrings."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # bottom first: a room may import lower floors only; the ground floor is open plan
    {"errors", "artifacts", "devices", "project"},
    {"graph", "metrics"},
    {"autodiff"},
    {"data", "train", "convert", "quantize", "tasks", "verify", "bench", "bundle"},
    {"rollout", "telemetry", "federated"},
    {"files"},
    {"registry", "transport", "tracking"},
    {"server", "report", "simulation"},
    {"pipeline"},  # it ends in the report, and gives the server its way back to the gates
    {"demo"},
    {"cli"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
DOORS = tuple(f"edgeml_runtime.{door}" for door in ("wire", "session", "measure", "task", "secagg"))
OWNERS = {  # the only places that may import a dependency
    "click": ("edgeml/cli",),
    "rich": ("edgeml/cli", "edgeml/demo"),
    "paho": ("edgeml/transport/mqtt.py", "runtime/edgeml_runtime/transport.py"),
    "amqtt": ("edgeml/transport/broker",),
    "sklearn": ("edgeml/train", "edgeml/convert/sklearn", "edgeml/metrics.py", "edgeml/data/sources.py"),
    "skl2onnx": ("edgeml/convert/sklearn",),
    "tensorflow": ("edgeml/convert/keras",),
    "keras": ("edgeml/convert/keras",),
    "tf2onnx": ("edgeml/convert/keras",),
    "onnxruntime": ("runtime/edgeml_runtime/ort_session.py", "edgeml/quantize"),
    "onnx": (
        "edgeml/graph",
        "edgeml/autodiff",
        "edgeml/tasks",
        "edgeml/convert",
        "edgeml/quantize",
        "edgeml/verify",
        "edgeml/bench",
    ),
    "sqlalchemy": ("edgeml/registry",),
    "pandas": ("edgeml/data", "edgeml/train", "edgeml/convert/sklearn_frame.py"),
    "mlflow": ("edgeml/tracking.py",),
    "dp_accounting": ("edgeml/federated/accountant.py",),
    "jinja2": ("edgeml/report",),
    "vl_convert": ("edgeml/report/vega.py",),
    "pydantic": ("edgeml/project.py",),
}
DEVICE_ONLY = {"numpy", "onnxruntime", "paho", "cryptography", "cbor2", "safetensors"}
NAMELESS = {"utils", "helpers", "common", "misc", "base", "core", "manager", "handler"}
MAX_LINES, MAX_FUNCTION_LINES, MAX_POSITIONAL = 500, 60, 3

EDGEML = sorted((ROOT / "edgeml").rglob("*.py"))
RUNTIME = sorted((ROOT / "runtime/edgeml_runtime").rglob("*.py"))
MODULES = [path.relative_to(ROOT) for path in EDGEML + RUNTIME]
every_module = pytest.mark.parametrize("path", MODULES, ids=str)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every dotted name `path` imports, including names imported from a package."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: use absolute imports"
            module = node.module or ""
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def room(path: Path) -> str:
    return path.relative_to("edgeml").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] == "edgeml"], ids=str)
def test_imports_only_point_down(path: Path) -> None:
    here = room(path)
    there = {name.split(".")[1] for name in imports(path) if name.startswith("edgeml.")} & FLOOR.keys() - {here}
    floor = FLOOR.get(here, len(FLOORS))  # edgeml/__init__.py and __main__.py stand on the roof
    wrong = {other for other in there if FLOOR[other] > floor or FLOOR[other] == floor > 0}
    assert not wrong, f"{here} (floor {floor}) may not import {sorted(wrong)}"


@every_module
def test_the_runtime_is_entered_by_its_doors_and_never_leaves(path: Path) -> None:
    if path.parts[0] == "runtime":
        assert not {name for name in imports(path) if name.split(".")[0] == "edgeml"}
    else:
        inside = {name for name in imports(path) if name.startswith("edgeml_runtime.")}
        assert not {name for name in inside if not name.startswith(DOORS)}


@every_module
def test_a_dependency_is_imported_only_by_its_owner(path: Path) -> None:
    for name in {name.split(".")[0] for name in imports(path)} & OWNERS.keys():
        assert path.as_posix().startswith(OWNERS[name]), f"{name} belongs to {OWNERS[name]}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] == "runtime"], ids=str)
def test_the_device_needs_little(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"edgeml_runtime"}
    assert foreign <= DEVICE_ONLY


@every_module
def test_no_module_outgrows_a_sitting(path: Path) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert path.stem not in NAMELESS


@every_module
def test_functions_fit_in_view_and_take_few_positional_parameters(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {lines} lines"
            positional = [arg.arg for arg in node.args.args if arg.arg not in ("self", "cls") and arg.arg[0] != "_"]
            if not any(isinstance(d, ast.Call) for d in node.decorator_list):  # click gives its options by name
                assert len(positional) <= MAX_POSITIONAL, f"{path}:{node.lineno} {node.name}{positional}"


@every_module
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(tree(path))
    assert docstring, f"{path} has no docstring"


@every_module
def test_no_import_hides_inside_a_function(path: Path) -> None:
    if path.as_posix().startswith("edgeml/cli"):
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            inside = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
            assert not inside, f"{path}:{inside[0].lineno}: import at the top, or by a table of doors"


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in (ROOT / "edgeml").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert rooms == FLOOR.keys() & rooms, f"{rooms - FLOOR.keys()} stand on no floor"


def test_every_room_has_a_page() -> None:
    missing = [name for name in FLOOR if name != "demo" and not (ROOT / f"docs/{name}.md").is_file()]
    assert not missing, f"docs/ has no page for {missing}"


def test_importing_edgeml_opens_no_heavy_room() -> None:
    code = (
        "import sys, edgeml, edgeml.cli;"
        "heavy = {'tensorflow', 'sklearn', 'onnx', 'onnxruntime', 'pandas', 'skl2onnx', 'pydantic', 'sqlalchemy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
