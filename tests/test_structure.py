"""The house's shape: imports point downwards, `import hpe_fast` stays light, every example in a docstring runs."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import hpe_fast

PACKAGE = Path(hpe_fast.__file__).parent
FLOORS = [
    {"files", "device", "skeleton"},
    {"ops", "models"},
    {"data", "pipeline", "metrics", "plots", "synthetic"},
    {"training", "evaluate", "predict", "convert", "synthesize", "info"},
    {"train"},
]
#: Needed by what uses them only, and slow to import.
HEAVY = {"nvidia.dali", "matplotlib", "cv2", "tensorboard", "tyro", "tqdm", "h5py", "torch"}


def floor(name: str) -> int | None:
    return next((i for i, names in enumerate(FLOORS) if name in names), None)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("hpe_fast.")}


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = floor(room(path))
    assert here is not None, f"{path} stands on no floor"
    above = {name for name in imports(path) if (floor(name) or 0) > here}
    assert not above


def test_models_and_data_do_not_know_each_other():
    for path in SOURCES:
        if room(path) == "models":
            assert "data" not in imports(path)


def test_only_native_touches_the_compiled_module():
    users = {path.relative_to(PACKAGE).as_posix() for path in SOURCES if "import _hpe_fast" in path.read_text()}
    assert users <= {"ops/native.py"}


def test_import_is_light():
    code = "import sys, hpe_fast; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & HEAVY


MODULES = sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "hpe_fast.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0
