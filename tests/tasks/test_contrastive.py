"""ContrastiveTask under a real Trainer, on real pictures."""

import math

import lightning as L
import pytest
import torch
from torch.optim import AdamW

from callbacks.retrieval_monitor import RetrievalMonitor
from datamodules.openmoji import OpenMojiDataModule
from workbench.errors import UserError
from workbench.optimization import ParameterRule
from workbench.tasks import ContrastiveTask
from workbench.tasks.training import total_optimizer_steps


class LossRecorder(L.Callback):
    """The global loss of every step, as logged."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def fit(tmp_path, task=None, steps=3, trainer=None, data=None, **changes):
    L.seed_everything(0, verbose=False)
    if task is None:
        changes = {"warmup": 0, "optimizer": lambda p: AdamW(p, lr=1e-3, weight_decay=0.2)} | changes
        task = ContrastiveTask(architecture="tiny-vit", **changes)
    data = OpenMojiDataModule(**({"batch_size": 16, "image_size": 32, "num_workers": 0} | (data or {})))
    recorder = LossRecorder()
    options = {
        "max_steps": steps,
        "limit_val_batches": 0,
        "callbacks": [recorder],
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": tmp_path,
    } | (trainer or {})
    trainer = L.Trainer(**options)
    trainer.fit(task, datamodule=data)
    return task, trainer, recorder.losses


def test_learns(tmp_path):
    """Sixty steps on 32 pairs must get far below chance; a detached tower or a wrong target would not."""
    _, _, losses = fit(tmp_path, steps=60, schedule="constant", data={"batch_size": 32, "held_out": 1893 - 32})
    assert losses[0] > 0.9 * math.log(32)
    assert losses[-1] < 0.5 * math.log(32)


def test_two_processes_and_chunks_give_the_same_losses(tmp_path):
    """Same global batches, patches and gradients: the curve does not depend on processes or chunks."""
    dropout = {"steps": 4, "patch_dropout": 0.25}
    _, _, one = fit(tmp_path, **dropout)
    _, _, chunked = fit(tmp_path, **dropout, encode_chunk=4)
    _, _, two = fit(tmp_path, **dropout, trainer={"devices": 2, "strategy": "ddp_fork", "callbacks": [Dump(tmp_path)]})
    two = torch.load(tmp_path / "losses.pt")
    assert len(set(one)) == 4
    assert chunked == pytest.approx(one, rel=1e-4)
    assert two == pytest.approx(one, rel=1e-4)


class Dump(LossRecorder):
    """Hand the losses of a spawned process back through a file."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self, trainer, *_):
        if trainer.is_global_zero:
            torch.save(self.losses, self.folder / "losses.pt")


def test_bf16_stays_close_to_fp32(tmp_path):
    _, _, single = fit(tmp_path)
    _, _, half = fit(tmp_path, trainer={"precision": "bf16-mixed"})
    assert half == pytest.approx(single, rel=0.05)
    assert half != single


def test_metrics_and_chance_levels(tmp_path):
    task, trainer, _ = fit(tmp_path, steps=2, trainer={"limit_val_batches": 1.0, "val_check_interval": 2})
    metrics = trainer.callback_metrics
    pairs = len(trainer.datamodule.datasets["val"])
    assert pairs == 190
    assert float(metrics["val/loss_chance"]) == pytest.approx(math.log(pairs))
    assert float(metrics["train/loss_chance"]) == pytest.approx(math.log(16))
    assert float(metrics["train/temperature"]) == pytest.approx(0.07, rel=0.02)
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            name = f"val/{direction}_recall@{k}"
            assert 0 <= float(metrics[name]) <= 1
            assert task.chance[name] == pytest.approx(k / pairs)
    for name in ("val/loss", "val/alignment", "val/uniformity", "val/modality_gap"):
        assert math.isfinite(float(metrics[name])), name


@pytest.mark.parametrize("shuffled", [False, True])
def test_recall_of_copied_features_is_one(tmp_path, monkeypatch, shuffled):
    """If both towers gave the picture's number as a one-hot vector, every recall would be 1; shuffled, about 0."""
    task = ContrastiveTask(architecture="tiny-vit", warmup=0)
    state = {"order": torch.randperm(190, generator=torch.Generator().manual_seed(0)), "seen": 0}

    def one_hot(batch):
        start, state["seen"] = state["seen"], state["seen"] + len(batch)
        return torch.eye(190)[start : start + len(batch)]

    monkeypatch.setattr(task, "encode_image_batch", one_hot)
    rows = {"seen": 0}

    def text(batch):
        start, rows["seen"] = rows["seen"], rows["seen"] + len(batch)
        return torch.eye(190)[state["order"] if shuffled else torch.arange(190)][start : start + len(batch)]

    monkeypatch.setattr(task, "encode_text_batch", text)
    _, trainer, _ = fit(tmp_path, task, steps=1, trainer={"limit_val_batches": 1.0, "val_check_interval": 1})
    recall = float(trainer.callback_metrics["val/image_to_text_recall@1"])
    assert recall < 0.05 if shuffled else recall == 1.0


def test_temperature_is_clamped_after_the_step(tmp_path):
    task, _, _ = fit(tmp_path, steps=1, logit_scale_max=10.0)
    assert float(task.clip.logit_scale.detach().exp()) == pytest.approx(10.0)


def test_temperature_learned_frozen_scheduled(tmp_path):
    learned, _, _ = fit(tmp_path)
    frozen, _, _ = fit(tmp_path, freeze_temperature=True)
    scheduled, _, _ = fit(tmp_path, temperature_init=0.1, temperature_end=0.025)
    start = math.log(1 / 0.07)
    assert float(learned.clip.logit_scale) != pytest.approx(start, abs=1e-6)
    assert float(frozen.clip.logit_scale) == pytest.approx(start, abs=1e-7)
    assert float(scheduled.clip.logit_scale) == pytest.approx(math.log(40), abs=1e-6)
    with pytest.raises(UserError, match="temperature_end"):
        ContrastiveTask(architecture="tiny-vit", temperature_end=0.01, freeze_temperature=True)


def test_frozen_tower_does_not_move_and_takes_no_state(tmp_path):
    rules = [ParameterRule(r"visual\.", lr=0.0)]
    L.seed_everything(0, verbose=False)
    start = ContrastiveTask(architecture="tiny-vit")
    start.configure_model()
    task, trainer, _ = fit(tmp_path, parameter_rules=rules)
    for name, parameter in task.clip.named_parameters():
        if name.startswith("visual."):
            assert torch.equal(parameter, start.clip.state_dict()[name]), name
            assert parameter not in trainer.optimizers[0].state
        elif parameter.ndim >= 2:
            assert not torch.equal(parameter, start.clip.state_dict()[name]), name


def test_own_learning_rate_of_the_temperature(tmp_path):
    _, trainer, _ = fit(tmp_path, parameter_rules=[ParameterRule("logit_scale", lr=0.1)], schedule="constant", steps=1)
    rates = {round(group["lr"], 8) for group in trainer.optimizers[0].param_groups}
    assert rates == {1e-3, 1e-4}


def test_adam_is_fused(tmp_path):
    _, trainer, _ = fit(tmp_path, steps=1)
    assert all(group["fused"] for group in trainer.optimizers[0].param_groups)


def test_warmup_longer_than_the_run(tmp_path):
    with pytest.raises(UserError, match="5 steps is not shorter than the run of 3"):
        fit(tmp_path, warmup=5)


def test_steps_of_the_run():
    class Trainer:
        class datamodule:  # noqa: N801
            batches_per_epoch = 10

        accumulate_grad_batches, max_epochs, max_steps = 3, 5, -1

    assert total_optimizer_steps(Trainer) == 4 * 5
    Trainer.max_steps = 7
    assert total_optimizer_steps(Trainer) == 7
    Trainer.max_epochs, Trainer.max_steps = -1, -1
    with pytest.raises(UserError, match="no end"):
        total_optimizer_steps(Trainer)
    Trainer.max_epochs, Trainer.datamodule.batches_per_epoch = 1, 0
    with pytest.raises(UserError, match="no step"):
        total_optimizer_steps(Trainer)


def test_checkpoint_describes_itself_and_refuses_another_model(tmp_path):
    task, trainer, _ = fit(tmp_path)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    about = checkpoint["workbench"]
    assert (about["architecture"], about["image_size"], about["activation"]) == ("tiny-vit", 32, "quick_gelu")
    assert about["total_steps"] == 3
    other = ContrastiveTask(architecture="tiny-rn", warmup=0)
    with pytest.raises(UserError, match="architecture tiny-vit in the checkpoint, tiny-rn in the configuration"):
        other.on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="not a checkpoint of a workbench run"):
        other.on_load_checkpoint({"state_dict": {}})


def test_monitor_of_the_training_pictures(tmp_path):
    monitor = RetrievalMonitor(name="train_subset", split="train", samples=32)
    task, trainer, _ = fit(
        tmp_path,
        steps=2,
        trainer={"callbacks": [LossRecorder(), monitor], "limit_val_batches": 1, "val_check_interval": 2},
    )
    assert 0 <= float(trainer.callback_metrics["train_subset/image_to_text_recall@1"]) <= 1
    assert task.chance["train_subset/image_to_text_recall@1"] == pytest.approx(1 / 32)
