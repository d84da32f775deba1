"""The arrows of CONTRIBUTING.md, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("workbench", "datamodules", "callbacks") for path in sorted((ROOT / folder).rglob("*.py"))]
UPPER = ("workbench.tasks", "workbench.cli", "workbench.main", "workbench.config_errors")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if name.startswith(("datamodules", "callbacks")):
        return name.split(".")[0]
    return "tasks" if name.startswith("workbench.tasks") else "top" if name.startswith(UPPER) else "core"


FORBIDDEN = {
    "core": ("lightning", "datamodules", "callbacks", *UPPER),
    "datamodules": ("callbacks", *UPPER),
    "callbacks": ("datamodules", *UPPER),
    "tasks": ("datamodules", "callbacks", "workbench.cli", "workbench.main", "workbench.config_errors"),
    "top": (),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    if path.stem in ("doctor", "__main__"):
        return  # commands: behind main, like cli
    for name in imports(path):
        for forbidden in FORBIDDEN[room(path)]:
            assert not (name == forbidden or name.startswith(forbidden + ".")), f"{path.name} imports {name}"


def test_every_room_has_a_name():
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_workbench_is_light():
    loaded = run("import workbench, sys; print(workbench.available_models()[0], 'lightning' in sys.modules)")
    assert loaded.split() == ["RN50", "False"]
    assert run("import workbench, sys; print('torch' in sys.modules)").strip() == "False"


def test_help_needs_no_torch():
    out = run("from workbench.main import main; import sys; main(['--help']); print('torch' in sys.modules)")
    assert "usage: python -m workbench" in out and out.rstrip().endswith("False")
