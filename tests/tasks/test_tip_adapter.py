"""TipAdapterTask under a real Trainer and through the command line, on folders of classes."""

import json
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.optim import AdamW

import workbench
from workbench import tokenize
from workbench.errors import Notice, UserError
from workbench.evaluation.cache_search import search, spaced
from workbench.main import main
from workbench.tasks import CoOpTask, TipAdapterTask
from workbench.tasks import tip_adapter as module

EXPERIMENT = str(Path(__file__).parent.parent.parent / "experiments" / "ft_tip_adapter.yaml")
SMALL_GRID = {"alphas": (0.5, 3.0, 5), "betas": (0.5, 7.0, 8)}


def task_of(seed=0, **options):
    L.seed_everything(seed, verbose=False)
    return TipAdapterTask(**({"architecture": "tiny-vit", "views": 2} | SMALL_GRID | options))


@pytest.fixture
def fit(fit_of):
    """Return what runs a task, and returns it and its Trainer."""
    return fit_of(task_of)


def values(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@torch.no_grad()
def encoded(task, pairs, keys):
    """Return normalised features and labels of some keys of a split, one by one."""
    samples = [pairs[key] for key in keys]
    images = torch.cat([task.encode_image_batch(sample["image"][None]) for sample in samples])
    return images, torch.stack([sample["label"] for sample in samples])


def zero_shot_logits(task, features, names):
    text = F.normalize(task.clip.encode_text(tokenize([f"a photo of a {name}." for name in names])), dim=-1)
    return task.clip.logit_scale.exp() * F.normalize(features, dim=-1) @ text.T


# Without training


def test_one_pass_without_an_optimizer(fit):
    """One batch and one validation, whatever the Trainer's limits, and nothing moves after the cache is filled."""
    start = task_of()
    trainer = {"max_epochs": 7, "max_steps": 30, "check_val_every_n_epoch": 4, "val_check_interval": 2}
    task, trainer = fit(trainer=trainer)
    assert (trainer.global_step, trainer.current_epoch) == (1, 1)
    assert not trainer.optimizers[0].param_groups and not trainer.optimizers[0].state
    found = values(trainer)
    assert found["val/top1"] > 0.9 > found["val/zero_shot_top1"]
    assert {"train/loss", "train/loss_chance", "val/loss", "val/alpha", "val/beta"} <= found.keys()
    assert task.chance["val/zero_shot_top1"] == task.chance["val/top1"] == pytest.approx(1 / 3)
    assert task.adapter.keys.norm(dim=1).tolist() == pytest.approx([1.0] * 24)
    assert start.clip is None


@pytest.mark.parametrize("views", [0, 1, 3])
def test_keys_are_means_of_views(fit, views):
    """Of un-normalised features of the training crops of visits that no epoch has; 0 is the crop of evaluation."""
    task, trainer = fit(views=views, data={"crop_scale": (0.3, 1.0)})
    pairs = trainer.datamodule.datasets["train"]
    rows = range(len(pairs))
    parts = [encoded(task, pairs, [(-1 - view, row) for row in rows])[0] for view in range(views)]
    expected = torch.stack(parts).mean(dim=0) if views else encoded(task, pairs, rows)[0]
    torch.testing.assert_close(task.adapter.keys.detach(), F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)
    assert task.adapter.labels.tolist() == pairs.labels.tolist()
    if views == 3:
        assert float((parts[0] - parts[1]).abs().max()) > 1e-3, "crops differ"


def test_metrics_are_those_of_the_formula(fit):
    task, trainer = fit(views=0)
    data, found = trainer.datamodule, values(trainer)
    features, labels = encoded(task, data.datasets["val"], range(9))
    base = zero_shot_logits(task, features, data.class_names)
    keys, values_ = task.adapter.keys, F.one_hot(data.datasets["train"].labels, 3).float()
    right = {}
    for beta in spaced(*SMALL_GRID["betas"]):
        for alpha in spaced(*SMALL_GRID["alphas"]):
            logits = base + alpha * (-beta * (1 - F.normalize(features, dim=-1) @ keys.T)).exp() @ values_
            right[alpha, beta] = int((logits.argmax(dim=1) == labels).sum())
    alpha, beta = max(right, key=right.get)
    assert len(set(right.values())) > 1, "else any choice would do"
    assert (found["val/alpha"], found["val/beta"]) == pytest.approx((alpha, beta))
    assert (float(task.adapter.alpha), float(task.adapter.beta)) == pytest.approx((alpha, beta))
    assert found["val/top1"] == pytest.approx(max(right.values()) / 9)
    assert found["val/zero_shot_top1"] == pytest.approx(float((base.argmax(dim=1) == labels).float().mean()))
    logits = base + alpha * (-beta * (1 - F.normalize(features, dim=-1) @ keys.T)).exp() @ values_
    assert found["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


def test_without_weight_it_is_zero_shot(fit):
    """To the last bit, and in every metric."""
    task, trainer = fit(alphas=(0.0, 0.0, 1))
    features = torch.randn(5, task.clip.architecture.embed_dim)
    assert torch.equal(task.logits(features), task.zero_shot_logits(features))
    found = values(trainer)
    for name in ("top1", "mean_per_class"):
        assert found[f"val/{name}"] == found[f"val/zero_shot_{name}"]


def test_chosen_by_val_alone(classes, fit, data_of, trainer_of):
    """A test split that cannot be read does not disturb a run, and is what `test` then stumbles over."""
    for path in (classes / "test").rglob("*.png"):
        path.write_bytes(b"no picture")
    task, trainer = fit(finetune=True)
    trainer.save_checkpoint("some.ckpt")
    assert values(trainer)["val/top1"] > 0.9
    with pytest.raises(UserError, match="test.*0.png"):
        trainer_of().test(task_of(), data_of(classes), ckpt_path="some.ckpt", verbose=False)


def test_other_pictures_of_val_choose_otherwise(fit, classes):
    """Pictures of val under wrong names: the search follows them, and nothing else changes."""
    first, _ = fit()
    names = sorted(path.name for path in (classes / "val").iterdir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        (classes / "val" / name).rename(classes / f"{other}_")
    for name in names:
        (classes / f"{name}_").rename(classes / "val" / name)
    second, _ = fit()
    assert torch.equal(first.adapter.keys, second.adapter.keys)
    assert (first.adapter.alpha, first.adapter.beta) != (second.adapter.alpha, second.adapter.beta)


# Tip-Adapter-F


def test_finetuning_trains_the_keys_alone(fit):
    start, _ = fit()
    trainer = {"max_epochs": 10, "check_val_every_n_epoch": 10}
    task, trainer = fit(finetune=True, trainer=trainer, optimizer=lambda p: AdamW(p, lr=1e-2, eps=1e-4))
    assert trainer.global_step == 20
    for name, value in start.clip.state_dict().items():
        assert torch.equal(task.clip.state_dict()[name], value), name
    assert not torch.equal(task.adapter.keys, start.adapter.keys)
    assert torch.equal(task.adapter.labels, start.adapter.labels)
    assert [id(p) for p in trainer.optimizers[0].state] == [id(task.adapter.keys)]
    assert [name for name, p in task.named_parameters() if p.requires_grad] == ["adapter.keys"]
    assert values(trainer)["val/top1"] > 0.9


def test_finetuned_keys_are_chosen_for_anew(fit):
    start, _ = fit()
    task, trainer = fit(finetune=True, optimizer=lambda p: AdamW(p, lr=0.1, eps=1e-4), trainer={"max_epochs": 4})
    images, labels = encoded(task, trainer.datamodule.datasets["val"], range(9))
    base = zero_shot_logits(task, images, task.class_names)
    keys, key_labels = task.adapter.keys, task.adapter.labels
    grid = [spaced(*SMALL_GRID[name]) for name in ("alphas", "betas")]
    expected = search(F.normalize(images, dim=-1), base, labels, keys, key_labels, *grid)
    assert (float(task.adapter.alpha), float(task.adapter.beta)) == pytest.approx(expected)
    assert expected != pytest.approx((float(start.adapter.alpha), float(start.adapter.beta)))


def test_batch_statistics_stay(fit):
    start, _ = fit(architecture="tiny-rn")
    task, _ = fit(architecture="tiny-rn", finetune=True)
    for name, value in start.clip.state_dict().items():
        assert torch.equal(task.clip.state_dict()[name], value), name
    assert not any(part.training for part in task.clip.modules())


def test_defaults_of_the_optimizer_are_the_authors(fit):
    _, trainer = fit(finetune=True, trainer={"max_steps": 1})
    (group,) = trainer.optimizers[0].param_groups
    assert type(trainer.optimizers[0]) is AdamW
    assert (group["initial_lr"], group["eps"], group["weight_decay"]) == (1e-3, 1e-4, 0.01)


def test_a_step_is_that_of_the_formula(fit):
    """The first gradient is of alpha 1.17 and beta 1, whatever was chosen."""

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            batch, keys = task.last_batch, task.adapter.keys.detach().clone().requires_grad_()
            with torch.no_grad():
                features = task.encode_image_batch(batch["image"])
                base = zero_shot_logits(task, features, task.class_names)
            one_hot = F.one_hot(task.adapter.labels, 3).float()
            logits = base + 1.17 * (-(1 - F.normalize(features, dim=-1) @ keys.T)).exp() @ one_hot
            F.cross_entropy(logits, batch["label"]).backward()
            self.expected, self.found = keys.grad, task.adapter.keys.grad.clone()

    look = Look()
    fit(finetune=True, trainer={"max_steps": 1, "callbacks": [look]})
    assert float(look.expected.norm()) > 0
    torch.testing.assert_close(look.found, look.expected, rtol=1e-4, atol=1e-7)


# However the pictures are divided


class Dump(L.Callback):
    """Hand what a spawned process has found back through a file."""

    def on_train_end(self, trainer, task):
        if trainer.is_global_zero:
            found = {"adapter": task.adapter.state_dict(), "labels": task.adapter.labels, "metrics": values(trainer)}
            torch.save(found, "found.pt")


@pytest.mark.parametrize("finetune", [False, True])
def test_two_processes_give_the_same(fit, finetune):
    """19 training pictures and 9 of val, so that the processes have different numbers."""

    def run(**trainer):
        plain = {"precision": "64-true", "callbacks": [Dump()], "max_epochs": 2}
        fit(finetune=finetune, trainer=plain | trainer, data={"batch_size": 8, "shots": None})
        return torch.load("found.pt")

    for path in sorted(Path("classes/train/blue_bird").iterdir())[:5]:
        path.unlink()
    one, two = run(), run(devices=2, strategy="ddp_fork")
    assert len(one["labels"]) == 19 and torch.equal(one["labels"], two["labels"])
    for name, value in one["adapter"].items():
        torch.testing.assert_close(two["adapter"][name], value, rtol=1e-5, atol=1e-6)
    assert two["metrics"].keys() == one["metrics"].keys() >= {"train/loss", "val/top1", "val/zero_shot_top1"}
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-5), name


# Checkpoints


class SaveAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint("some.ckpt")


def test_resuming_is_exact(fit, monkeypatch):
    options = {"finetune": True, "trainer": {"max_epochs": 3, "callbacks": [SaveAt(3)]}}
    whole, first = fit(**options)
    monkeypatch.setattr(TipAdapterTask, "_fill", lambda task: pytest.fail("the cache is the checkpoint's"))
    resumed, second = fit(**options, ckpt_path="some.ckpt")
    assert first.global_step == second.global_step == 6
    assert torch.equal(whole.adapter.labels, resumed.adapter.labels)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    (one,), (other,) = (trainer.optimizers[0].state_dict()["state"].values() for trainer in (first, second))
    assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    assert values(first) == values(second)


def test_a_run_without_training_is_over(fit):
    whole, trainer = fit()
    trainer.save_checkpoint("some.ckpt")
    again, trainer = fit(ckpt_path="some.ckpt")
    assert trainer.global_step == 1
    assert torch.equal(again.adapter.keys, whole.adapter.keys) and torch.equal(again.adapter.beta, whole.adapter.beta)


def test_test_takes_what_was_chosen(fit, classes, data_of, trainer_of):
    """And no training pictures, of which there need be none."""
    task, trainer = fit()
    trainer.save_checkpoint("some.ckpt")
    checkpoint = torch.load("some.ckpt", weights_only=True)
    beside = sorted(name for name in checkpoint["state_dict"] if not name.startswith("clip."))
    assert beside == ["adapter.alpha", "adapter.beta", "adapter.keys"]
    assert checkpoint["workbench"]["key_labels"] == [0] * 8 + [1] * 8 + [2] * 8
    data = data_of(classes / "test", test=None)
    (classes / "test").rename(classes.parent / "only")
    (classes.parent / "alone").mkdir()
    (classes.parent / "only").rename(classes.parent / "alone" / "test")
    data = data_of(classes.parent / "alone")
    other = task_of(alphas=(9.0, 9.0, 1))
    (found,) = trainer_of().test(other, data, ckpt_path="some.ckpt", verbose=False)
    assert found["test/top1"] > 0.9 and list(data.datasets) == ["test"]
    for name in ("keys", "labels", "alpha", "beta"):
        assert torch.equal(getattr(other.adapter, name), getattr(task.adapter, name)), name
    model, _ = workbench.load("some.ckpt", device="cpu")
    assert torch.equal(model.visual.proj, task.clip.visual.proj)


def test_without_a_test_split_it_says_whose_numbers_these_are(fit, folders, tmp_path, data_of, trainer_of):
    _, trainer = fit()
    trainer.save_checkpoint("some.ckpt")
    data = data_of(folders(tmp_path / "two", splits=("train", "val")))
    with pytest.warns(Notice, match="no test split, so that test/... is of val"):
        trainer_of().test(task_of(), data, ckpt_path="some.ckpt", verbose=False)


def test_checkpoints_that_will_not_do(fit, classes, folders, data_of, trainer_of, tmp_path):
    with pytest.raises(UserError, match="no cache to measure; give a run's checkpoint with --ckpt_path"):
        trainer_of().test(task_of(), data_of(classes), verbose=False)
    _, trainer = fit()
    trainer.save_checkpoint("some.ckpt")
    others = folders(tmp_path / "others", ("blue_bird", "red_fox", "wolf"))
    with pytest.raises(UserError, match="class 1 is 'green frog' there and 'red fox' here"):
        trainer_of().test(task_of(), data_of(others), ckpt_path="some.ckpt", verbose=False)
    with pytest.raises(UserError, match="of a run of another task, without what CoOpTask learns"):
        coop = CoOpTask(architecture="tiny-vit")
        trainer_of().test(coop, data_of(classes), ckpt_path="some.ckpt", verbose=False)


# What is refused before the first step


def test_training_pictures_cannot_choose(classes, fit):
    for split in ("val", "test"):
        (classes / split).rename(classes.parent / split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the data's own
        with pytest.raises(UserError, match="no validation split, and alpha and beta .* --data.val_fraction 0.1"):
            fit()
    task, _ = fit(data={"shots": 4, "batch_size": 6})
    assert len(task.adapter.keys) == 12 and len(task._val[1]) == 12, "four others of each class are val"


def test_validation_that_is_left_out(fit):
    with pytest.raises(UserError, match="--trainer.limit_val_batches 0 leaves out"):
        fit(trainer={"limit_val_batches": 0})


def test_a_cache_that_is_too_large(fit, monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEYS", 23)
    with pytest.raises(UserError, match=r"24 keys of 32 numbers \(0 MB\).* at most 23 .*--data.shots 16"):
        fit()


def test_a_picture_that_cannot_be_read(classes, fit):
    """Another would stand in its place, also where the data allow that."""
    (classes / "train" / "green_frog" / "2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 training pictures could not be read.*classes/train, picture 11"):
        fit(data={"max_skipped": 0.5})


@pytest.mark.parametrize(
    "options, words",
    [
        ({"views": -1}, "views is -1"),
        ({"alpha": -0.5}, "alpha is -0.5"),
        ({"betas": (2.0, 1.0, 5)}, r"betas is \[2.0, 1.0, 5\]"),
        ({"alphas": (0.1, 3.0, 0)}, r"alphas is \[0.1, 3.0, 0\]"),
    ],
)
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(UserError, match=words):
        task_of(**options)


# The command line


def test_the_experiment_from_end_to_end(classes, tmp_path, capsys):
    small = [
        *("--data.dataset", "null", "--data.root", str(classes), "--data.shots", "4", "--data.batch_size", "6"),
        *("--model.init_args.architecture", "tiny-vit", "--model.init_args.weights", "null"),
        *("--model.init_args.views", "2", "--trainer.accelerator", "cpu", "--data.num_workers", "0"),
        *("--trainer.log_every_n_steps", "1", "--checkpoint.every_n_steps", "1"),
        *("--model.init_args.betas", "[0.1, 7.0, 20]"),
    ]
    assert main(["fit", "--config", EXPERIMENT, *small]) == 0
    run = tmp_path / "runs" / "ft_tip_adapter" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 1)
    assert {"train/loss", "val/top1", "val/zero_shot_top1", "val/alpha", "val/beta"} <= summary["metrics"].keys()
    assert (run / "checkpoints" / "best.ckpt").is_file() and "val/zero_shot_top1" in capsys.readouterr().out
    again = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main(["test", *again]) == 0 and "test/top1" in capsys.readouterr().out
    assert main(["validate", *again]) == 0
    chosen = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["adapter.beta"]
    assert f"{float(chosen)}"[:8] in capsys.readouterr().out
    assert (
        main(["fit", "--config", EXPERIMENT, *small, "--model.init_args.finetune", "true", "--trainer.max_epochs", "2"])
        == 0
    )
    summary = json.loads((run.parent / "1" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 4)
