"""Small pictures that differ, and tables of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.main import main


@pytest.fixture(scope="session")
def drawn():
    """Return a function number -> RGB picture; those of different numbers do not look alike."""

    def draw(number, size=(256, 240)):
        noise = np.random.default_rng(number).integers(0, 256, (7, 7, 3)).astype(np.uint8)
        return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)

    return draw


@pytest.fixture
def table():
    """Return a function that writes a CSV of rows (filepath, caption)."""

    def write(path, rows, header=("filepath", "caption")):
        with Path(path).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return str(path)

    return write


@pytest.fixture
def pairs(drawn, table):
    """Return a function that writes pictures and their table, and returns its name."""

    def write(path="pairs.csv", numbers=range(12), folder="pictures", caption="picture of the number {}"):
        Path(folder).mkdir(exist_ok=True)
        for number in numbers:
            drawn(number).save(f"{folder}/{number}.jpg", quality=90)
        return table(path, [(f"{folder}/{number}.jpg", caption.format(number)) for number in numbers])

    return write


@pytest.fixture
def check(capsys):
    """Return a function that runs `data check` in this process, and returns code, what was found and what was said."""

    def run(*args, workers=0):
        capsys.readouterr()
        code = main(["data", "check", *args, "--json", "found.json", "--workers", str(workers)])
        said = capsys.readouterr()
        found = json.loads(Path("found.json").read_text()) if code < 2 else None
        return code, found, said.out + said.err

    return run


@pytest.fixture
def codes():
    """Return a function: what was found -> {code of a finding: its severity}."""
    return lambda found: {finding["code"]: finding["severity"] for finding in found["findings"]}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """However wide the one is that the tests are run in, sentences are broken at the same words."""
    monkeypatch.setenv("COLUMNS", "120")
