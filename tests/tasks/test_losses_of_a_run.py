"""What ContrastiveTask makes of labels, of the sigmoid loss and of a teacher, under a real Trainer."""

import json
import math

import lightning as L
import pytest
import torch
from PIL import Image
from torch.optim import AdamW

from datamodules import ClassificationDataModule, ImageTextDataModule, OpenMojiDataModule
from workbench.errors import UserError
from workbench.main import main
from workbench.models import create_model
from workbench.tasks import ContrastiveTask
from workbench.tasks.distillation import Distillation
from workbench.weights.description import description

COLOURS = ("black", "blue", "red", "white")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Six pictures of each of four classes."""
    folder = tmp_path_factory.mktemp("colours")
    for colour in COLOURS:
        (folder / colour).mkdir()
        for number in range(6):
            Image.new("RGB", (32 + number, 32), colour).save(folder / colour / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights of a tiny model that can be started from."""
    path = tmp_path_factory.mktemp("start") / "start.pt"
    torch.manual_seed(1)
    model = create_model("tiny-vit")
    torch.save({"state_dict": {f"clip.{k}": v for k, v in model.state_dict().items()},
                "workbench": description(model.architecture)}, path)  # fmt: skip
    return str(path)


class Curves(L.Callback):
    """Everything that is logged at each step; handed back through a file, as the process may be another's."""

    def __init__(self, path):
        self.path, self.steps = path, []

    def on_train_batch_end(self, trainer, *_):
        self.steps.append({key: float(value) for key, value in trainer.callback_metrics.items()})
        if trainer.global_rank == 0:
            self.path.write_text(json.dumps(self.steps))


def fit(tmp_path, data, steps=4, devices=1, **changes):
    """Train and return the logged steps and the task."""
    L.seed_everything(0, verbose=False)
    changes = {"warmup": 0, "optimizer": lambda p: AdamW(p, lr=1e-3), "schedule": "constant"} | changes
    task = ContrastiveTask(**({"architecture": "tiny-vit"} | changes))
    data.follow(task.described())
    curves = Curves(tmp_path / f"curves-{devices}.json")
    trainer = L.Trainer(
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[curves],
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, datamodule=data)
    return json.loads(curves.path.read_text()), task


def classes(colours, **options):
    return ClassificationDataModule(
        root=colours, **({"batch_size": 8, "num_workers": 0, "captions": "first"} | options)
    )


def emoji(**options):
    return OpenMojiDataModule(**({"batch_size": 16, "num_workers": 0} | options))


def column(steps, name):
    return [step[f"train/{name}"] for step in steps]


def test_pairs_of_a_class_are_positives_by_default(tmp_path, colours):
    """Four classes in a batch of eight: as negatives, equal captions would hold the loss at ln 2 and above."""
    steps, _ = fit(tmp_path, classes(colours), steps=60)
    assert all(
        loss >= least - 1e-5 for loss, least in zip(column(steps, "loss"), column(steps, "loss_least"), strict=True)
    )
    assert steps[-1]["train/loss"] - steps[-1]["train/loss_least"] < 0.1
    as_published, _ = fit(tmp_path, classes(colours), steps=2, positives="pair")
    by_label, _ = fit(tmp_path, classes(colours), steps=2, positives="label")
    assert "train/loss_least" not in as_published[0]
    assert column(by_label, "loss") == column(steps[:2], "loss") != column(as_published, "loss")


def test_pairs_of_a_picture_are_positives(tmp_path):
    """With two captions for each of four pictures in a batch of all eight pairs, the least loss is ln 2."""
    rows = ["filepath,title"]
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
        rows += [f"{colour}.png,first {number}", f"{colour}.png,second {number}"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    place = str(tmp_path / "pairs.csv")
    data = ImageTextDataModule(train=place, val=place, several_captions="all", batch_size=8, num_workers=0)
    steps, _ = fit(tmp_path, data, steps=2)
    assert column(steps, "loss_least") == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"loss": "sigmoid"}, {"distillation": Distillation(features=1.0)}],
    ids=["labels", "sigmoid", "teacher"],
)
def test_two_processes_give_the_same_losses(tmp_path, colours, start, changes):
    changes = {"weights": start} | changes
    one, _ = fit(tmp_path, classes(colours), **changes)
    two, _ = fit(tmp_path, classes(colours), devices=2, **changes)
    for name in one[0]:
        if name.startswith("train/"):
            assert [s[name] for s in two] == pytest.approx([s[name] for s in one], rel=1e-4, abs=1e-6), name
    assert len(set(column(one, "loss"))) == 4


def test_sigmoid_starts_at_its_chance_and_learns(tmp_path):
    data = emoji(batch_size=32, held_out=1893 - 32)
    steps, task = fit(tmp_path, data, steps=60, loss="sigmoid", temperature_init=0.1)
    assert steps[0]["train/loss"] == pytest.approx(steps[0]["train/loss_chance"], abs=2.0)
    assert steps[0]["train/loss_chance"] == pytest.approx(math.log(32) + 31 * math.log(32 / 31))
    assert steps[-1]["train/loss"] < 0.6 * steps[0]["train/loss"]
    assert steps[0]["train/logit_bias"] != steps[-1]["train/logit_bias"]
    assert task.metadata()["logit_bias"] is True and "clip.logit_bias" in task.state_dict()


def test_a_sigmoid_run_is_stopped_resumed_and_measured(tmp_path, colours):
    base = ["--model", "ContrastiveTask", "--model.architecture", "tiny-vit", "--model.loss", "sigmoid",
            "--data", "ClassificationDataModule", "--data.root", colours, "--data.batch_size", "8",
            "--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1",
            "--model.warmup", "0", "--model.schedule", "constant"]  # fmt: skip
    for name, steps, more in (("whole", 4, []), ("half", 2, [])):
        root = ["--trainer.default_root_dir", str(tmp_path / name), "--experiment", "run"]
        assert main(["fit", *base, *root, "--trainer.max_steps", str(steps), *more]) == 0
    half = tmp_path / "half" / "run" / "0" / "checkpoints" / "last.ckpt"
    root = ["--trainer.default_root_dir", str(tmp_path / "half"), "--experiment", "run"]
    assert main(["fit", *base, *root, "--trainer.max_steps", "4", "--ckpt_path", str(half)]) == 0
    whole = torch.load(tmp_path / "whole/run/0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    resumed = torch.load(sorted(tmp_path.glob("half/run/*/checkpoints/last.ckpt"))[-1], weights_only=True)["state_dict"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert main(["validate", *base, "--ckpt_path", str(half)]) == 0
    assert main(["fit", *base, *root, "--trainer.max_steps", "1", "--model.weights", str(half)]) == 0


def test_a_teacher_holds_back_and_is_not_the_runs(tmp_path, start):
    data = {"batch_size": 16, "held_out": 1893 - 32}
    free, _ = fit(tmp_path, emoji(**data), steps=20, weights=start, distillation=Distillation(logits=1e-9))
    held, task = fit(tmp_path, emoji(**data), steps=20, weights=start, distillation=Distillation(logits=30.0))
    assert free[0]["train/distillation_logits"] == pytest.approx(0, abs=1e-6)  # the student is its own teacher
    assert held[-1]["train/distillation_logits"] / 30 < 0.3 * free[-1]["train/distillation_logits"] / 1e-9
    assert held[-1]["train/loss"] > free[-1]["train/loss"]
    ours = create_model("tiny-vit")
    assert set(task.state_dict()) == {f"clip.{key}" for key in ours.state_dict()}
    assert len(list(task.parameters())) == len(list(ours.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "triplet"}, "loss is 'triplet'; there are softmax and sigmoid"),
        ({"positives": "class"}, "positives is 'class'"),
        ({"positives": "label"}, "the data have none"),
        ({"distillation": Distillation()}, "distillation has no teacher"),
        ({"distillation": Distillation("TEACHER"), "image_size": 64}, "The teacher .* has image_size 32"),
    ],
)
def test_mistakes(tmp_path, start, changes, message):
    if changes.get("distillation") == Distillation("TEACHER"):
        changes = changes | {"distillation": Distillation(start)}
    with pytest.raises(UserError, match=message):
        fit(tmp_path, emoji(), steps=1, **changes)


def test_nothing_to_distil():
    with pytest.raises(UserError, match="give weights of at least 0"):
        Distillation(logits=0.0)
