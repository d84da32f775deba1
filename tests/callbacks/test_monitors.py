"""The monitors around a real run through the command line, on real pictures."""

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import AdamW

from callbacks.retrieval_monitor import RetrievalMonitor
from callbacks.training_monitor import ChanceLevelMonitor, GradientNormMonitor, TemperatureMonitor
from callbacks.zero_shot_monitor import ZeroShotMonitor
from datamodules import ClassificationDataModule, OpenMojiDataModule
from workbench.main import main
from workbench.tasks import ContrastiveTask

QUICK = str(Path(__file__).parent.parent.parent / "experiments" / "quickstart.yaml")


@pytest.fixture
def colours(tmp_path):
    """A folder of two classes, plain red and plain blue."""
    for name, colour in (("red_square", "red"), ("blue_square", "blue")):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40 + number), colour).save(tmp_path / "classes" / name / f"{number}.png")
    return tmp_path / "classes"


def test_whole_run(tmp_path, colours, capsys):
    """Everything that the quickstart watches, on a tiny model, with a zero-shot set from a folder of classes."""
    Path("more.yaml").write_text(
        f"""
trainer:
  callbacks+:
    - class_path: ZeroShotMonitor
      init_args:
        name: colours
        data: {{class_path: ClassificationDataModule, init_args: {{root: {colours}}}}}
"""
    )
    options = [
        *("--model.init_args.architecture", "tiny-vit", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "2"),
        *("--checkpoint.monitor", "val/image_to_text_recall@5"),
    ]
    assert main(["fit", "--config", QUICK, "--config", "more.yaml", *options]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 26
    assert (folder / summary["best_checkpoint"]).is_file()
    metrics = summary["metrics"]
    expected = {
        *("train/loss", "train/loss_chance", "train/temperature", "train/pairs_per_second", "train/data_wait_share"),
        *("train/gradient_norm/image", "train/gradient_norm/text", "train/gradient_norm/logit_scale"),
        *("val/loss", "val/alignment", "val/uniformity", "val/modality_gap", "val/text_to_image_recall@10"),
        *("train_subset/image_to_text_recall@1", "train_subset/text_to_image_recall@5"),
        *("colours/zero_shot_top1", "colours/zero_shot_top1_start"),
    }
    assert expected <= set(metrics)
    assert metrics["val/loss"]["step"] == 26 and math.isfinite(metrics["val/loss"]["value"])
    assert metrics["train/pairs_per_second"]["value"] > 1 and 0 <= metrics["train/data_wait_share"]["value"] <= 1
    assert summary["chance"]["train_subset/image_to_text_recall@1"] == pytest.approx(1 / 500)
    assert summary["chance"]["colours/zero_shot_top1"] == 0.5

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert expected - {"colours/zero_shot_top1_start"} <= set(tags["scalars"])
    assert any("learning_rate" in tag for tag in tags["scalars"])
    assert tags["images"] == ["val/pictures"] and "config/text_summary" in tags["tensors"]
    assert len(events.Scalars("train/loss")) == 13
    picture = Image.open(folder / "pictures" / "step_26.png")
    assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 500
    assert (folder / "projector_config.pbtxt").is_file()
    rows = next(folder.glob("*/val/metadata.tsv")).read_text().splitlines()
    assert rows[0] == "caption\tmodality" and len(rows) == 1 + 2 * 190
    for words in ("What was learnt", "val/image_to_text_recall@5", "2.6%", "step_26.png", "tensorboard", "--ckpt_path"):
        assert words in printed, words
    config = (folder / "config.yaml").read_text()
    assert "experiment: quickstart" in config and "architecture: tiny-vit" in config
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["seed"] == 0


class Recorder(L.Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [p.grad for name, p in pl_module.clip.named_parameters() if name.startswith("visual.")]
        self.seen.append(float(torch.cat([g.flatten() for g in gradients]).norm()))


def run(tmp_path, callbacks, lr=1e-3, steps=4, **trainer):
    L.seed_everything(0, verbose=False)
    task = ContrastiveTask(architecture="tiny-vit", warmup=0, schedule="constant", optimizer=lambda p: AdamW(p, lr=lr))
    data = OpenMojiDataModule(batch_size=16, image_size=32, num_workers=0)
    options = {"limit_val_batches": 0, "max_steps": steps, "log_every_n_steps": 1} | trainer
    fitted = L.Trainer(
        accelerator="cpu",
        devices=options.pop("devices", 1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        **options,
    )
    fitted.fit(task, datamodule=data)
    return task, fitted


def test_gradient_norm_is_that_of_the_tower(tmp_path):
    recorder = Recorder()
    _, trainer = run(tmp_path, [recorder, GradientNormMonitor()], steps=1)
    assert float(trainer.callback_metrics["train/gradient_norm/image"]) == pytest.approx(recorder.seen[0], rel=1e-5)


def test_loss_that_stays_at_chance_is_said_once(tmp_path, recwarn):
    """A learning rate of 0 learns nothing; with a temperature of 100 the loss is ln N."""
    monitor = ChanceLevelMonitor(patience=3, tolerance=10.0)
    run(tmp_path, [monitor], lr=0.0, steps=8)
    said = [str(w.message) for w in recwarn if "chance level" in str(w.message)]
    assert len(said) == 1 and "chance level, 2.77" in said[0] and "learning rate" in said[0]


def test_loss_that_falls_is_not_scolded(tmp_path, recwarn):
    run(tmp_path, [ChanceLevelMonitor(patience=3, tolerance=0.01)], steps=8)
    assert not [w for w in recwarn if "chance level" in str(w.message)]


def test_falling_logit_scale_is_explained(tmp_path, recwarn):
    class Push(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with torch.no_grad():
                pl_module.clip.logit_scale.fill_(math.log(14 if trainer.global_step == 0 else 2))

    run(tmp_path, [Push(), TemperatureMonitor(patience=3)], lr=0.0, steps=8)
    said = [str(w.message) for w in recwarn if "logit scale fell" in str(w.message)]
    assert len(said) == 1 and "from 14.0 to 2.0" in said[0]


def test_zero_shot_finds_what_was_trained(tmp_path, colours):
    """Trained as contrastive data on two colours, the model tells them apart by their names."""
    L.seed_everything(0, verbose=False)
    data = ClassificationDataModule(str(colours), image_size=32, batch_size=2, num_workers=0)
    monitor = ZeroShotMonitor(ClassificationDataModule(str(colours), num_workers=0), name="colours")
    task = ContrastiveTask(architecture="tiny-vit", warmup=0, optimizer=lambda p: AdamW(p, lr=2e-3))
    trainer = L.Trainer(
        max_epochs=60,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=60,
        callbacks=[monitor],
    )
    trainer.fit(task, datamodule=data)
    assert float(trainer.callback_metrics["colours/zero_shot_top1"]) == 1.0
    assert task.chance["colours/zero_shot_top1"] == 0.5


def test_zero_shot_needs_class_names(tmp_path):
    from workbench.errors import UserError

    with pytest.raises(UserError, match="no class names"):
        run(tmp_path, [ZeroShotMonitor(OpenMojiDataModule(num_workers=0))])


class Dump(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save({k: float(v) for k, v in trainer.callback_metrics.items()}, self.path)


def test_two_processes_measure_the_same(tmp_path):
    """190 rows shared by two processes, and 33 of the training pictures, an odd number."""
    found = []
    for devices in (1, 2):
        path = tmp_path / f"{devices}.pt"
        strategy = {} if devices == 1 else {"strategy": "ddp_fork"}
        monitors = [RetrievalMonitor("subset", split="train", samples=33), Dump(path)]
        run(tmp_path, monitors, steps=2, devices=devices, limit_val_batches=1.0, val_check_interval=2, **strategy)
        found.append({k: v for k, v in torch.load(path).items() if k.startswith(("val/", "subset/"))})
    one, two = found
    assert set(one) == set(two) and len(one) >= 15
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=2e-3), key
