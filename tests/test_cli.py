"""The command line around a run: what was measured in training is measured again from the run's folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from callbacks import run_summary
from workbench.main import main

QUICK = str(Path(__file__).parent.parent / "experiments" / "quickstart.yaml")
TINY = [
    *("--model.init_args.architecture", "tiny-vit", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "-1", "--trainer.max_steps", "4", "--trainer.callbacks", "[]"),
    *("--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "4"),
]


def measured(capsys):
    """Read the table that the Trainer prints; with lines between its columns where `rich` is installed."""
    rows = (line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines())
    return {row[0]: float(row[1]) for row in rows if len(row) == 2 and "/" in row[0] and row[1][0] in "-0123456789"}


def test_validating_a_checkpoint_repeats_the_runs_numbers(capsys):
    assert main(["fit", "--config", QUICK, *TINY]) == 0
    run = Path("runs/quickstart/0")
    summary = json.loads((run / "summary.json").read_text())["metrics"]
    expected = {name: noted["value"] for name, noted in summary.items() if name.startswith("val/")}
    assert len(expected) == 11 and all(summary[name]["step"] == 4 for name in expected)
    capsys.readouterr()
    again = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main(["validate", *again]) == 0
    assert measured(capsys) == pytest.approx(expected, abs=1e-4)
    assert [path.name for path in Path("runs/quickstart").iterdir()] == ["0"], "evaluation makes no run"
    # OpenMoji has no test split, so its val split is what a test measures.
    assert main(["test", *again]) == 0
    renamed = {name.replace("val/", "test/"): value for name, value in expected.items()}
    assert measured(capsys) == pytest.approx(renamed, abs=1e-4)


def test_an_untrained_model_knows_nothing(capsys):
    """`validate` without a checkpoint measures the model as it is built."""
    assert main(["validate", "--config", QUICK, *TINY]) == 0
    assert measured(capsys)["val/image_to_text_recall@10"] < 0.2


def test_a_table_of_ones_own(capsys):
    """The README's command: delimiter and columns are found, a tenth is held out, and the run's config repeats it."""
    Path("mine").mkdir()
    with Path("mine/pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["title", "image"])
        for number in range(40):
            Image.new("RGB", (40, 50), (6 * number, 100, 255 - 6 * number)).save(f"mine/{number}.png")
            writer.writerow(["None" if number == 7 else f"shade; number {number}", f"{number}.png"])
    own = ["--data", "ImageTextDataModule", "--data.train", "mine/pairs.csv", "--data.batch_size", "12"]
    assert main(["fit", "--config", QUICK, *TINY, "--trainer.val_check_interval", "2", *own]) == 0
    run = Path("runs/quickstart/0")
    chance = json.loads((run / "summary.json").read_text())["chance"]
    assert chance["val/image_to_text_recall@1"] == 1 / 4
    assert "class_path: datamodules.ImageTextDataModule" in (run / "config.yaml").read_text()
    capsys.readouterr()
    last = str(run / "checkpoints" / "last.ckpt")
    assert main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", last]) == 0
    assert "val/loss" in measured(capsys)


@pytest.mark.parametrize("active", [True, False])
def test_programs_are_named_as_they_can_be_typed(monkeypatch, active):
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/bin/tensorboard").write_text("#!/bin/sh\n")
    Path(".venv/bin/tensorboard").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(Path(".venv/bin/python").absolute()))
    monkeypatch.setenv("PATH", str(Path(".venv/bin").absolute()) if active else "/usr/bin")
    assert run_summary._program("tensorboard") == ("tensorboard" if active else ".venv/bin/tensorboard")


def test_a_pipe_that_closes_is_no_traceback():
    """As `python -m workbench --help | head -1` may, when it is slow to print."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "workbench", "--help"], stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 141 and done.stderr == ""
