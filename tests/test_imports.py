"""The arrows of CONTRIBUTING.md, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("workbench", "datamodules", "callbacks") for path in sorted((ROOT / folder).rglob("*.py"))]
UPPER = (
    *("workbench.tasks", "workbench.cli", "workbench.main", "workbench.config_errors", "workbench.data"),
    *("workbench.averaging.command", "workbench.averaging.run_data"),
)
FORBIDDEN = {
    "core": ("lightning", "datamodules", "callbacks", *UPPER),
    "datamodules": ("callbacks", *UPPER),
    "callbacks": ("datamodules", *UPPER),
    "tasks": ("datamodules", "callbacks", *(name for name in UPPER if name != "workbench.tasks")),
    "top": (),
}


def imports(source, name):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def room(name):
    if within(name, ("datamodules", "callbacks")):
        return name.split(".")[0]
    if within(name, ("workbench.tasks",)):
        return "tasks"
    return "top" if within(name, (*UPPER, "workbench.__main__")) else "core"


def wrong_imports(source, name):
    return [imported for imported in imports(source, name) if within(imported, FORBIDDEN[room(name)])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert wrong_imports(path.read_text(), name) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("workbench.models.clip", "import lightning.pytorch as pl"),
        ("workbench.losses", "def f():\n    from lightning import Trainer"),
        ("workbench.weights.loading", "from workbench import tasks"),
        ("workbench.evaluation.retrieval", "from datamodules.base import ImageDataModule"),
        ("workbench.evaluation.retrieval", "from ..tasks import Task"),
        ("datamodules.base", "from workbench.tasks.base import Task"),
        ("callbacks.retrieval_monitor", "import datamodules"),
        ("workbench.tasks.base", "from workbench.cli import run_verb"),
    ],
)
def test_an_arrow_that_points_back_is_noticed(name, source):
    assert wrong_imports(source, name)


@pytest.mark.parametrize(
    "name, source",
    [
        ("workbench.tasks.base", "import lightning as L"),
        ("callbacks.retrieval_monitor", "from lightning.pytorch import Callback"),
        ("workbench.cli", "import datamodules, callbacks.progress, workbench.tasks"),
        ("workbench.models.clip", "import lightning_utilities"),
    ],
)
def test_an_arrow_that_points_on_is_let_pass(name, source):
    assert wrong_imports(source, name) == []


def test_every_room_has_a_name():
    assert [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")] == []


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_workbench_takes_no_torch_and_using_it_no_lightning():
    said = run(
        "import sys, workbench; torch = 'torch' in sys.modules; print(torch, workbench.available_models()[0], "
        "workbench.load, sorted({'lightning', 'timm', 'ftfy', 'regex', 'matplotlib'} & sys.modules.keys()))"
    )
    assert said.startswith("False RN50 <function load") and said.endswith("[]\n")


def test_help_needs_no_torch():
    out = run("from workbench.main import main; import sys; main(['--help']); print('torch' in sys.modules)")
    assert "usage: python -m workbench" in out and out.rstrip().endswith("False")
