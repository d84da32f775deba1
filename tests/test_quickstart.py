"""What `make demo` promises, by the very file that it runs: the mean of three seeds is 38 % and 96 %."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"


def test_names_pictures_whose_names_it_has_never_seen():
    command = [sys.executable, "-m", "workbench", "fit", "--config", str(QUICK), "--trainer.accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = Path("runs/quickstart/0")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 390)
    held_out, trained = "val/image_to_text_recall@5", "train_subset/image_to_text_recall@1"
    assert summary["chance"][held_out] == pytest.approx(5 / 190) and summary["chance"][trained] == pytest.approx(
        1 / 500
    )
    assert summary["metrics"][held_out]["value"] >= 0.25
    assert summary["metrics"][trained]["value"] >= 0.70
    assert summary["metrics"][held_out]["step"] == 390
    assert (run / "pictures" / "step_390.png").is_file() and (run / "checkpoints" / "best.ckpt").is_file()
    shown = f"{held_out:<40} {summary['metrics'][held_out]['value']:>9.1%} {'2.6%':>9}"
    assert shown in done.stdout.splitlines()
    for words in ("tensorboard --logdir runs", "--ckpt_path runs/quickstart/0/checkpoints/last.ckpt", "pairs.csv"):
        assert words in done.stdout
