"""A run's `batch_norm`: fine-tuning leaves the statistics as they are, and pre-training has those of all processes."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.optim import AdamW

from datamodules import OpenMojiDataModule
from workbench.errors import UserError
from workbench.export import safetensors
from workbench.models import create_model
from workbench.models.lora import LoRA
from workbench.tasks import ContrastiveTask


class Recorder(L.Callback):
    """Hand losses and weights back through a file, also from a forked process."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer, task):
        if trainer.is_global_zero:
            torch.save({"losses": self.losses, "state": task.clip.state_dict()}, "found.pt")


def fit(trainer_of, steps=4, trainer=None, **task):
    L.seed_everything(0, verbose=False)
    task = ContrastiveTask(
        **{"architecture": "tiny-rn", "init": "pytorch", "warmup": 0, "optimizer": lambda p: AdamW(p, lr=1e-3)} | task
    )
    data = OpenMojiDataModule(batch_size=16, image_size=32, num_workers=0)
    options = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0, "callbacks": [Recorder()]}
    trainer_of(**options | (trainer or {})).fit(task, datamodule=data)
    return torch.load("found.pt")


def weights():
    """Write weights with statistics of pictures."""
    torch.manual_seed(3)
    model = create_model("tiny-rn", init="pytorch")
    model.train().encode_image(torch.randn(8, 3, 32, 32))
    Path("base").mkdir()
    safetensors.write(model, Path("base"), {})
    return model.state_dict()


def statistics(state):
    return {name: value for name, value in state.items() if "running_" in name or "num_batches" in name}


def test_fine_tuning_leaves_the_statistics_as_they_are(trainer_of):
    """Through validations, after which Lightning puts every layer back into training mode."""
    before = weights()
    validated = {"limit_val_batches": 1, "val_check_interval": 1}
    found = fit(trainer_of, weights="base/model.safetensors", trainer=validated)["state"]
    assert len(statistics(before)) == 3 * 19
    assert all(torch.equal(found[name], value) for name, value in statistics(before).items())
    for name in ("visual.bn1.weight", "visual.layer4.0.bn3.bias", "visual.conv1.weight"):
        assert not torch.equal(found[name], before[name]), name
    moved = fit(trainer_of, weights="base/model.safetensors", batch_norm="batch", trainer=validated)["state"]
    assert not any(torch.equal(moved[name], value) for name, value in statistics(before).items())


def test_two_processes_pre_train_as_one(trainer_of):
    """Without weights the statistics are those of all processes; a process's own make another curve."""
    two = {"devices": 2, "strategy": "ddp_fork"}
    one, both, own = (
        fit(trainer_of, **options) for options in ({}, {"trainer": two}, {"trainer": two, "batch_norm": "batch"})
    )
    assert len(set(one["losses"])) == 4
    assert both["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert own["losses"] != pytest.approx(one["losses"], rel=1e-3)
    for name, value in statistics(one["state"]).items():
        assert float((both["state"][name] - value).double().norm()) <= 0.01 * float(value.double().norm()), name


def test_what_cannot_be_had_is_refused(trainer_of):
    with pytest.raises(UserError, match="has no batch normalisation"):
        fit(trainer_of, architecture="tiny-vit", batch_norm="frozen")
    with pytest.raises(UserError, match="lora freezes the base"):
        fit(trainer_of, lora=LoRA(match=[r"visual\.attnpool\.q_proj"]), batch_norm="batch")
