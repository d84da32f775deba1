"""A run that was killed and resumed ends where one that was never stopped does, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

QUICK = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
STEPS = 24


def command(root, workers, *more):
    return [
        *(sys.executable, "-m", "workbench", "fit", "--config", str(QUICK)),
        *("--model.init_args.architecture", "tiny-vit", "--model.init_args.patch_dropout", "0.25"),
        *("--data.batch_size", "128", "--data.num_workers", str(workers)),
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


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_of_an_epoch(tmp_path, workers):
    subprocess.run(command(tmp_path / "whole", workers), check=True, env=environment(), capture_output=True)
    whole = tmp_path / "whole" / "quickstart" / "0"

    process = subprocess.Popen(
        command(tmp_path / "killed", workers), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    killed = tmp_path / "killed" / "quickstart" / "0"
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at = weights(killed)["global_step"]
    assert at % 13 and at < STEPS  # 13 batches make an epoch

    resumed = command(tmp_path / "killed", workers, "--ckpt_path", str(killed / "checkpoints" / "last.ckpt"))
    subprocess.run(resumed, check=True, env=environment(), capture_output=True)
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
    subprocess.run(command(tmp_path / "whole", 0), check=True, env=environment(), capture_output=True)
    process = subprocess.Popen(
        command(tmp_path / "stopped", 0), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
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
