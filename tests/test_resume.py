"""A run that was killed and resumed ends where one that was never stopped does, to the last bit."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions
from datamodules.sources.write_shards import write_shards

QUICK = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
STEPS, PER_EPOCH = 24, 13
BATCH = 16


def table(folder, rows, word):
    """Write a table of so many pictures of 32 pixels, JPEG and PNG in turn, and return its path."""
    folder.mkdir(parents=True)
    lines = [("filepath", "caption")]
    for number in range(rows):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        name = f"{number:03}.{('jpg', 'png')[number % 2]}"
        Image.fromarray(pixels).save(folder / name)
        lines.append((name, f"{word} {number}"))
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return str(folder / "pairs.csv")


def data(kind, folder):
    """Return the options of the data, 13 batches and a few rows more; what is not drawn by ourselves is in a folder."""
    if kind == "emoji":
        return ["--data.batch_size", "128"]
    rows = PER_EPOCH * BATCH + 5
    if kind == "table":
        train = table(folder / "table", rows, "number")
    else:
        second = 70 if kind == "mixture" else 0
        source = read_source(table(folder / "table", rows - second, "number"), ReadOptions())
        write_shards(source, folder / "shards", samples_per_shard=7)  # more shards than are mixed at a time
        train = str(folder / "shards" / "*.tar")
    if kind == "mixture":
        small = table(folder / "small", second, "numeral")
        train = json.dumps([{"path": train, "weight": 1}, {"path": small, "weight": 2.5}])
    val = table(folder / "val", 8, "val")
    return [
        *("--data", "ImageTextDataModule", "--data.train", train, "--data.val", val),
        *("--data.batch_size", str(BATCH), "--data.crop_scale", "[0.4, 1.0]"),
    ]


def command(root, workers, *more):
    return [
        *(sys.executable, "-m", "workbench", "fit", "--config", str(QUICK)),
        *("--model.init_args.architecture", "tiny-vit", "--model.init_args.patch_dropout", "0.25"),
        *("--data.num_workers", str(workers)),
        *("--trainer.max_epochs", "-1", "--trainer.max_steps", str(STEPS), "--trainer.limit_val_batches", "0"),
        *("--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.callbacks", "[]", "--checkpoint.every_n_steps", "4"),
        *("--trainer.default_root_dir", str(root), *more),
    ]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def losses(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    # After a resumption the later value of a step counts.
    return {event.step: event.value for event in events.Scalars("train/loss")}


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("emoji", 0),
        ("emoji", 2),
        ("mixture", 0),
        pytest.param("shards", 0, marks=pytest.mark.slow),
        pytest.param("table", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_of_an_epoch(tmp_path, kind, workers):
    options = data(kind, tmp_path)
    quiet = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    whole, killed = (tmp_path / name / "quickstart" / "0" for name in ("whole", "killed"))
    # Beside each other, as most of their time is the start.
    with subprocess.Popen(command(tmp_path / "whole", workers, *options), **quiet) as uninterrupted:
        run = command(tmp_path / "killed", workers, *options)
        process = subprocess.Popen(run, **quiet)
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        at = weights(killed)["global_step"]
        assert at % PER_EPOCH and at < STEPS

        run += ["--ckpt_path", str(killed / "checkpoints" / "last.ckpt")]
        subprocess.run(run, check=True, env=environment(), capture_output=True)
    assert uninterrupted.returncode == 0
    assert not (killed.parent / "1").exists(), "a resumed run goes on in its folder"

    expected, found = losses(whole), losses(killed)
    assert len(set(expected.values())) == STEPS
    # Killed between writing the checkpoint and logging its step, that one point may lack.
    assert set(expected) - set(found) <= {at - 1}
    assert found == {step: expected[step] for step in found}
    for key, value in weights(whole)["state_dict"].items():
        assert torch.equal(weights(killed)["state_dict"][key], value), key
    for one, other in zip(*(weights(f)["optimizer_states"][0]["state"].values() for f in (whole, killed)), strict=True):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    summary = json.loads((killed / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", STEPS)


def test_config_of_the_run_folder_repeats_and_interrupting_keeps_everything(tmp_path):
    """Ctrl-C stops after the step with exit code 130; the run's own config.yaml resumes it to the same end."""
    options = data("emoji", tmp_path)
    run = command(tmp_path / "whole", 0, *options)
    subprocess.run(run, check=True, env=environment(), capture_output=True)
    run = command(tmp_path / "stopped", 0, *options)
    process = subprocess.Popen(run, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 6/"):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.stderr.read()
    stopped = tmp_path / "stopped" / "quickstart" / "0"
    assert json.loads((stopped / "summary.json").read_text())["status"] == "interrupted"
    config, checkpoint = stopped / "config.yaml", stopped / "checkpoints" / "last.ckpt"
    assert 6 <= weights(stopped)["global_step"] < STEPS
    again = [sys.executable, "-m", "workbench", "fit", "--config", str(config), "--ckpt_path", str(checkpoint)]
    subprocess.run(again, check=True, env=environment(), capture_output=True)
    summary = json.loads((stopped / "summary.json").read_text())
    assert summary["status"] == "finished" and len(summary["attempts"]) == 2
    whole = tmp_path / "whole" / "quickstart" / "0"
    assert losses(stopped) == losses(whole)
    for key, value in weights(whole)["state_dict"].items():
        assert torch.equal(weights(stopped)["state_dict"][key], value), key
