"""CoOpTask under a real Trainer and through the command line, on folders of classes."""

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD

import workbench
from datamodules import ImageTextDataModule
from workbench import tokenize
from workbench.errors import UserError
from workbench.main import main
from workbench.models.lora import LoRA
from workbench.tasks import CoOpTask

EXPERIMENT = str(Path(__file__).parent.parent.parent / "experiments" / "ft_coop.yaml")


def task_of(seed=0, **options):
    L.seed_everything(seed, verbose=False)
    options = {"architecture": "tiny-vit", "context_tokens": 4, "warmup": 0} | options
    return CoOpTask(**options)


@pytest.fixture
def fit(fit_of):
    """Return what runs a task, and returns it and its Trainer."""
    return fit_of(task_of)


def values(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# What is learnt


@pytest.mark.parametrize("class_specific", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_learns(fit, data_of, classes, class_specific):
    """From random towers not every seed does: they are no CLIP that tells anything apart."""
    changes = {"class_specific": class_specific, "optimizer": lambda p: SGD(p, lr=0.02, momentum=0.9), "seed": 1}
    task, trainer = fit(trainer={"max_epochs": 12}, **changes)
    found = values(trainer)
    assert found["val/top1"] > 0.9 > found["val/zero_shot_top1"]
    assert found["val/loss"] < 0.8 * math.log(3) and found["train/loss_chance"] == pytest.approx(math.log(3))
    assert task.chance["val/zero_shot_top1"] == task.chance["val/top1"] == pytest.approx(1 / 3)
    (tested,) = trainer.test(task, data_of(classes), verbose=False)
    assert tested["test/top1"] > 0.9 and "test/zero_shot_mean_per_class" in tested


def test_from_words_the_first_step_is_zero_shot(data_of, trainer_of, classes):
    """Before a step, the prompts of the words are those of the template; with the loss of their cosines."""
    task, data = task_of(context_tokens=None, context_words="a photo of a"), data_of(classes)
    (found,) = trainer_of().validate(task, data, verbose=False)
    assert found["val/top1"] == found["val/zero_shot_top1"]
    batch = next(iter(data.val_dataloader()))
    text = F.normalize(task.clip.encode_text(tokenize([f"a photo of a {name}." for name in data.class_names])), dim=-1)
    image = F.normalize(task.encode_image_batch(batch["image"]), dim=-1)
    logits = task.clip.logit_scale.exp() * image @ text.T
    assert found["val/loss"] == pytest.approx(float(F.cross_entropy(logits, batch["label"])), rel=1e-5)


def test_defaults_are_the_papers(fit):
    task, trainer = fit(context_tokens=None)
    assert task.adapter.context.shape == (16, 64)
    (group,) = trainer.optimizers[0].param_groups
    assert type(trainer.optimizers[0]) is SGD
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (2e-3, 0.9, 5e-4)


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
def test_nothing_else_changes_by_a_bit_or_takes_state(fit, data_of, trainer_of, classes, architecture):
    """Nor do the batch statistics of a ResNet."""
    start = task_of(architecture=architecture)
    trainer_of().validate(start, data_of(classes), verbose=False)
    task, trainer = fit(architecture=architecture)
    assert trainer.global_step == 4
    for name, value in start.clip.state_dict().items():
        assert torch.equal(task.clip.state_dict()[name], value), name
    assert not torch.equal(task.adapter.context, start.adapter.context)
    assert [id(p) for p in trainer.optimizers[0].state] == [id(task.adapter.context)]
    assert [name for name, p in task.named_parameters() if p.requires_grad] == ["adapter.context"]
    assert task.train().training and not any(part.training for part in task.clip.modules())


def test_first_of_several_names(data_of, trainer_of, classes):
    names = "[[blue bird, jay], [green frog, tree frog], [red fox, reynard]]"
    Path("names.yaml").write_text(f"class_names: {names}\ntemplates: ['{{}}']")
    data = data_of(classes, class_names="names.yaml")
    data.setup()
    task = task_of()
    trainer_of().validate(task, data, verbose=False)
    assert [others for _, others in data.names] == ["jay", "tree frog", "reynard"]
    assert task.class_names == ["blue bird", "green frog", "red fox"]
    assert task.adapter.tokens[2, 5:8].tolist() == tokenize("red fox.")[0, 1:4].tolist()


# However the batch is divided


class Dump(L.Callback):
    """Hand what a spawned process has found back through a file."""

    def __init__(self):
        self.gradient, self.losses = None, []

    def on_before_optimizer_step(self, trainer, task, optimizer):
        if self.gradient is None:
            self.gradient = task.adapter.context.grad.clone()

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer, task):
        if trainer.is_global_zero:
            torch.save({"gradient": self.gradient, "losses": self.losses, "metrics": values(trainer)}, "found.pt")


def test_two_processes_give_the_same(fit):
    def run(**trainer):
        fit(trainer={"precision": "64-true", "callbacks": [Dump()], **trainer}, data={"batch_size": 8})
        return torch.load("found.pt")

    one, two = run(), run(devices=2, strategy="ddp_fork")
    assert float(one["gradient"].norm()) > 0
    torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-9, atol=1e-12)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6) and len(set(one["losses"])) == 6
    assert two["metrics"].keys() == one["metrics"].keys() >= {"val/top1", "val/zero_shot_top1"}
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-6), name


# Checkpoints


class SaveAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint("some.ckpt")


def test_resuming_is_exact(fit):
    options = {"trainer": {"max_epochs": 3, "callbacks": [SaveAt(3)]}, "class_specific": True}
    whole, first = fit(**options)
    torch.manual_seed(1)
    resumed, second = fit(**options, ckpt_path="some.ckpt")
    assert first.global_step == second.global_step == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    (one,), (other,) = (trainer.optimizers[0].state_dict()["state"].values() for trainer in (first, second))
    assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert values(first) == values(second)


def test_checkpoint_is_of_clip_and_context(fit, data_of, trainer_of, folders, classes, tmp_path):
    task, trainer = fit()
    trainer.save_checkpoint("some.ckpt")
    checkpoint = torch.load("some.ckpt", weights_only=True)
    beside = [name for name in checkpoint["state_dict"] if not name.startswith("clip.")]
    assert beside == ["adapter.context"]
    assert checkpoint["workbench"]["class_names"] == ["blue bird", "green frog", "red fox"]
    model, _ = workbench.load("some.ckpt", device="cpu")
    assert torch.equal(model.token_embedding.weight, task.clip.token_embedding.weight)
    # One context for all classes does for any.
    others = folders(tmp_path / "others", ("owl", "wolf"))
    fresh = task_of()
    (found,) = trainer_of().test(fresh, data_of(others), ckpt_path="some.ckpt", verbose=False)
    assert torch.equal(fresh.adapter.context, task.adapter.context) and 0 <= found["test/top1"] <= 1


@pytest.mark.parametrize(
    "learnt, asked, words",
    [
        ({}, {"context_tokens": 5}, "a context of 4 tokens, one for all classes, and .* for 5, one for all classes"),
        ({}, {"class_specific": True}, "of 4 tokens, one for all classes, and .* for 4, one for each class"),
        ({"class_specific": True}, {}, "of 4 tokens, one for each class, and .* for 4, one for all classes"),
        (
            {"class_specific": True},
            {"class_specific": True, "names": ["blue bird", "green frog", "fox"]},
            "class 2 is 'red fox' there and 'fox' here",
        ),
    ],
)
def test_another_context_is_refused(fit, data_of, trainer_of, classes, learnt, asked, words):
    _, trainer = fit(trainer={"max_steps": 1}, **learnt)
    trainer.save_checkpoint("some.ckpt")
    asked = dict(asked)
    data = data_of(classes, class_names=asked.pop("names", None))
    with pytest.raises(UserError, match=words):
        trainer_of().test(task_of(**asked), data, ckpt_path="some.ckpt", verbose=False)


# What is refused before the first step


def test_data_without_classes(trainer_of, classes):
    task = task_of()
    rows = [f"{path},a picture" for path in sorted((classes / "train").rglob("*.png"))]
    Path("pairs.csv").write_text("\n".join(["filepath,caption", *rows]))
    data = ImageTextDataModule("pairs.csv", val="pairs.csv", batch_size=8, image_size=32, num_workers=0)
    with pytest.raises(UserError, match="CoOpTask learns from pictures of classes, and ImageTextDataModule has none"):
        trainer_of().fit(task, data)
    assert task.clip is None


@pytest.mark.parametrize("options", [{"lora": LoRA()}, {"batch_norm": "batch"}])
def test_changes_of_clip(options):
    with pytest.raises(UserError, match="CoOpTask keeps CLIP as it is: leave out lora and batch_norm"):
        task_of(**options)


def test_a_prompt_that_is_too_long_names_its_class(fit):
    with pytest.raises(UserError, match="class 'green frog' has 78 tokens, more than the context length of 77"):
        fit(context_tokens=73, data={"class_names": ["jay", "green frog", "fox"]})


# The command line


def test_the_experiment_from_end_to_end(classes, tmp_path, capsys):
    small = [
        *("--data.dataset", "null", "--data.root", str(classes), "--data.shots", "8", "--data.batch_size", "12"),
        *("--model.init_args.architecture", "tiny-vit", "--model.init_args.weights", "null"),
        *("--model.init_args.warmup", "0.1", "--trainer.accelerator", "cpu", "--data.num_workers", "0"),
        *("--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"),
    ]
    assert main(["fit", "--config", EXPERIMENT, *small]) == 0
    run = tmp_path / "runs" / "ft_coop" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 4)
    assert {"train/loss", "val/top1", "val/zero_shot_top1"} <= summary["metrics"].keys()
    assert (run / "checkpoints" / "best.ckpt").is_file() and "val/zero_shot_top1" in capsys.readouterr().out
    again = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main(["test", *again]) == 0 and "test/top1" in capsys.readouterr().out
    assert main(["fit", *again, "--trainer.max_epochs", "3"]) == 0
    assert json.loads((run / "summary.json").read_text())["step"] == 6
