"""ClassificationTask under a real Trainer, on folders of colours."""

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.optim import SGD, AdamW

import workbench
from callbacks.zero_shot_monitor import ZeroShotMonitor
from datamodules import ImageTextDataModule
from workbench.errors import UserError
from workbench.evaluation.encoding import encode_images
from workbench.evaluation.linear_probe import linear_probe
from workbench.evaluation.logistic_regression import LogisticRegression
from workbench.evaluation.measures import Measure
from workbench.main import main
from workbench.models.lora import LoRA
from workbench.optimization import ParameterRule
from workbench.tasks import ClassificationTask, ContrastiveTask
from workbench.tasks.labelled import require_same_classes

ROOT = Path(__file__).parent.parent.parent
NAMES = ["blue_bird", "green_frog", "red_fox"]
TWELVE = tuple(f"class {number:02d}" for number in range(12))
ONE_STEP = {"max_steps": 1, "val_check_interval": 1}


def task_of(**options):
    L.seed_everything(0, verbose=False)
    options = {"architecture": "tiny-vit", "warmup": 0, "optimizer": lambda p: AdamW(p, lr=1e-3)} | options
    return ClassificationTask(**options)


@pytest.fixture
def fit(data_of, trainer_of):
    """Return what trains on a root, and returns task and Trainer; changes are the task's."""

    def run(root, trainer=None, ckpt_path=None, **changes):
        task, trainer = task_of(**changes), trainer_of(**(trainer or {}))
        trainer.fit(task, datamodule=data_of(root), ckpt_path=ckpt_path)
        return task, trainer

    return run


def values(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# Where it starts


def zero_shot(task, data):
    """Return the zero-shot metrics of val, of the model as it stands."""
    data.setup()
    task.eval()
    return Measure("classes", data, "zero_shot")(task)


@pytest.mark.parametrize("architecture, names", [("tiny-vit", TWELVE), ("tiny-rn", NAMES)])
def test_starts_as_the_zero_shot_classifier(tmp_path, folders, data_of, trainer_of, architecture, names):
    root = folders(tmp_path / "pictures", names, train=2, other=5)
    templates = ["a photo of a {}.", "{}", "this is the {}."]
    task = task_of(architecture=architecture)
    (found,) = trainer_of().validate(task, data_of(root, templates=templates), verbose=False)
    expected = zero_shot(task, data_of(root, templates=templates))
    assert 0 < expected["classes/zero_shot_top1"] < 1, "else the comparison says nothing"
    assert found["val/top1"] == expected["classes/zero_shot_top1"]
    assert found.get("val/top5") == expected.get("classes/zero_shot_top5")
    assert ("val/top5" in found) == (len(names) > 10)


def test_logits_are_scaled_cosines(classes, data_of, trainer_of):
    task = task_of(temperature_init=0.02)
    trainer_of().validate(task, data_of(classes), verbose=False)
    features, texts = torch.randn(5, task.clip.architecture.embed_dim), F.normalize(task.head.weight, dim=-1)
    torch.testing.assert_close(task.logits(features), 50 * F.normalize(features, dim=-1) @ texts.T)
    assert not task.head.bias.any()
    with torch.autocast("cpu", torch.bfloat16):
        assert task.logits(features).dtype == torch.float32


def test_zeros_start_at_chance(classes, fit):
    """All classes tie, which counts against every row."""
    task, trainer = fit(classes, ONE_STEP, head_init="zeros")
    found = values(trainer)
    assert found["train/loss"] == pytest.approx(math.log(3)) == found["train/loss_chance"]
    assert found["val/loss_start"] == pytest.approx(math.log(3)) and found["val/top1_start"] == 0
    for name, chance in {"loss": math.log(3), "top1": 1 / 3, "mean_per_class": 1 / 3}.items():
        assert task.chance[f"val/{name}"] == task.chance[f"val/{name}_start"] == pytest.approx(chance)


# The linear probe first


def stripes(root, train=12, val=6):
    """Write noise with a stripe in the place of its class, of which no probe knows all; return the root."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(4):
            folder = Path(root, split, f"class_{label}")
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 64, (32, 32, 3), generator=generator, dtype=torch.uint8)
                pixels[8 * label : 8 * label + 3] = 255
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return root


class LookAtStart(L.Callback):
    """Keep the head, and the features that it acts on, as they are before the first step."""

    def on_train_start(self, trainer, task):
        self.weight, self.bias = task.head.weight.detach().clone(), task.head.bias.detach().clone()
        task.eval()
        self.features = {}
        for split in ("train", "val"):
            features, labels = encode_images(task, trainer.datamodule.evaluation_dataloader(split), "label")
            self.features[split] = F.normalize(features, dim=-1), labels
        task.train()


def test_the_first_phase_is_the_linear_probe(tmp_path, fit):
    """Against scikit-learn, on the features that the head acts on."""
    from sklearn.linear_model import LogisticRegression as Theirs

    look = LookAtStart()
    start = ONE_STEP | {"callbacks": [look]}
    task, trainer = fit(stripes(tmp_path / "stripes"), start, head_init="probe", probe_strength=0.001)
    train, val = ((x.double().numpy(), y.numpy()) for x, y in look.features.values())
    solved = Theirs(C=1000, tol=1e-10, max_iter=10_000).fit(*train)
    for features, _ in (train, val):
        ours = torch.from_numpy(features) @ look.weight.double().T + look.bias
        assert abs(ours.softmax(dim=1).numpy() - solved.predict_proba(features)).max() < 2e-3
    found = values(trainer)
    assert found["val/top1_start"] == pytest.approx(solved.score(*val)) and 0.3 < found["val/top1_start"] < 1
    assert task.chance["val/top1_start"] == 0.25


def test_its_penalty_is_chosen_by_val_and_its_head_fitted_to_train_alone(tmp_path, fit):
    look = LookAtStart()
    fit(stripes(tmp_path / "stripes"), ONE_STEP | {"callbacks": [look]}, head_init="probe")
    chosen = linear_probe(look.features["train"], look.features["val"], 4)
    right = LogisticRegression(*look.features["train"], 4).fit(chosen.strength).classifier
    torch.testing.assert_close(look.weight, right.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(look.bias, right.bias, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(look.weight, chosen.classifier.weight, rtol=1e-3), "that is of train and val"


def test_a_probe_without_a_val_split_or_without_a_class_is_refused(tmp_path, folders, fit):
    root = folders(tmp_path / "pictures", splits=("train",))
    with pytest.raises(UserError, match="no validation split to choose .*probe_strength"):
        fit(root, head_init="probe")
    fit(root, ONE_STEP, head_init="probe", probe_strength=1.0)
    for picture in (root / "train" / "green_frog").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match="no training pictures of 'green frog'"):
        fit(root, head_init="probe", probe_strength=1.0)


# What is learnt


def test_learns(classes, fit, data_of):
    task, trainer = fit(classes, {"max_epochs": 20, "check_val_every_n_epoch": 20})
    found = values(trainer)
    assert found["val/top1"] == found["val/mean_per_class"] == 1 > found["val/top1_start"]
    assert found["val/loss"] < 0.1 * found["val/loss_start"]
    (tested,) = trainer.test(task, data_of(classes), verbose=False)
    assert tested["test/top1"] == 1 and task.chance["test/top1"] == pytest.approx(1 / 3)


def test_text_tower_never_changes_and_takes_no_state(classes, fit, data_of, trainer_of):
    start = task_of()
    trainer_of().validate(start, data_of(classes), verbose=False)
    task, trainer = fit(classes)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for name, value in task.named_parameters():
        trained = name.startswith(("clip.visual.", "head."))
        assert value.requires_grad == trained == (id(value) in optimized) == (value in trainer.optimizers[0].state)
        assert torch.equal(value, start.state_dict()[name]) != trained, name


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_of_training_alone(classes, fit, smoothing):
    class Look(L.Callback):
        def on_before_backward(self, trainer, task, loss):
            logits = task.logits(task.encode_image_batch(task.last_batch["image"]))
            wanted = F.one_hot(task.last_batch["label"], 3) * (1 - smoothing) + smoothing / 3
            self.found, self.expected = loss.item(), -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean().item()

    look = Look()
    _, trainer = fit(classes, ONE_STEP | {"callbacks": [look]}, label_smoothing=smoothing)
    assert look.found == pytest.approx(look.expected, rel=1e-5)
    _, plain = fit(classes, ONE_STEP)
    assert values(trainer)["val/loss_start"] == values(plain)["val/loss_start"]


def test_rules_name_the_image_tower_and_the_head(classes, fit):
    head = [ParameterRule("head.bias", lr=0.5), ParameterRule("head", weight_decay=0)]
    rules = [ParameterRule(r"visual\.", lr=0), *head]
    _, trainer = fit(classes, parameter_rules=rules, schedule="constant")
    groups = {tuple(g["names"]): (g["lr"], g["weight_decay"]) for g in trainer.optimizers[0].param_groups}
    assert groups == {("head.weight",): (1e-3, 0), ("head.bias",): (5e-4, 0)}
    with pytest.raises(UserError, match="'transformer' matches no parameter"):
        fit(classes, parameter_rules=[ParameterRule("transformer", lr=0)])


def test_lora_of_the_image_tower_beside_the_head(classes, fit):
    task, _ = fit(classes, lora=LoRA(rank=2))
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all("lora" in name and "visual" in name for name in trained - {"head.weight", "head.bias"})


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_are_of_the_whole_split(tmp_path, folders, fit):
    """Classes of different sizes, and a batch that is not full; against scikit-learn."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score

    root = folders(tmp_path / "pictures", TWELVE, train=4)
    for number, name in enumerate(TWELVE[:7]):
        for picture in ("0.png", "1.png", "2.png")[: 2 if number < 6 else 3]:  # of the seventh, none is left
            (root / "val" / name / picture).unlink()
    task, trainer = fit(root)
    task.eval()
    features, labels = encode_images(task, trainer.datamodule.evaluation_dataloader("val"), "label")
    scores, found, every = task.logits(features).detach().double().softmax(dim=1), values(trainer), list(range(12))
    assert len(labels) == 21
    assert 0 < found["val/top1"] < 1 and found["val/top1"] != found["val/mean_per_class"]
    assert found["val/top1"] == pytest.approx(accuracy_score(labels, scores.argmax(dim=1)))
    assert found["val/mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(dim=1)))
    assert found["val/top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=every))
    assert found["val/loss"] == pytest.approx(log_loss(labels, scores, labels=every), rel=1e-5)


# However the batch is divided


class Gradients(L.Callback):
    """Keep the first step's gradient and the metrics, in a file, as a forked process is gone in the end."""

    def __init__(self, path):
        self.path, self.gradient = path, None

    def on_before_optimizer_step(self, trainer, task, optimizer):
        if self.gradient is None:
            self.gradient = torch.cat([p.grad.flatten() for p in task.parameters() if p.requires_grad])

    def on_train_end(self, trainer, task):
        if trainer.is_global_zero:
            torch.save({"gradient": self.gradient.clone(), "metrics": values(trainer)}, self.path)


def test_processes_and_chunks_give_the_same_gradient(classes, fit):
    """In float64, where the order of sums hides nothing; 9 rows of val are shared by two processes."""

    def run(processes=1, **changes):
        trainer = {"precision": "64-true", "callbacks": [Gradients("found.pt")]}
        if processes == 2:
            trainer |= {"devices": 2, "strategy": "ddp_fork"}
        fit(classes, trainer, patch_dropout=0.25, optimizer=lambda p: SGD(p, lr=0.1), **changes)
        return torch.load("found.pt")

    plain = run()
    assert float(plain["gradient"].norm()) > 0
    for changes in ({"encode_chunk": 4}, {"processes": 2}, {"processes": 2, "encode_chunk": 4}):
        found = run(**changes)
        error = (found["gradient"] - plain["gradient"]).norm() / plain["gradient"].norm()
        assert float(error) <= 1e-10, changes
        assert found["metrics"].keys() == plain["metrics"].keys() >= {"val/top1", "val/mean_per_class_start"}
        for name, value in plain["metrics"].items():
            assert found["metrics"][name] == pytest.approx(value, rel=1e-6), (changes, name)


@pytest.mark.parametrize("chunk, counted", [(None, 1), (4, 3)])
def test_batch_normalisation_counts_each_chunk_of_a_step_once(classes, fit, chunk, counted):
    """And nothing of what is measured before the first step."""
    task, _ = fit(classes, ONE_STEP, architecture="tiny-rn", encode_chunk=chunk)
    assert int(task.clip.visual.bn1.num_batches_tracked) == counted


# Checkpoints


class SaveAt(L.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
@pytest.mark.parametrize("head_init", ["zero_shot", "probe"])
def test_resuming_is_exact(classes, fit, head_init):
    of_all = {"max_epochs": 3, "val_check_interval": 1}
    whole, first = fit(classes, of_all | {"callbacks": [SaveAt(3, "three.ckpt")]}, head_init=head_init)
    resumed, second = fit(classes, of_all, ckpt_path="three.ckpt", head_init=head_init)
    assert {name.split(".")[0] for name in whole.state_dict()} == {"clip", "head"}
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    states = [trainer.optimizers[0].state_dict()["state"] for trainer in (first, second)]
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    assert values(first) == values(second) and "val/top1_start" in values(second)


def test_test_takes_the_checkpoints_head(classes, fit, data_of, trainer_of):
    task, trainer = fit(classes, {"max_epochs": 20, "limit_val_batches": 0})
    trainer.save_checkpoint("run.ckpt")
    other = task_of()
    (found,) = trainer_of().test(other, data_of(classes), ckpt_path="run.ckpt", verbose=False)
    assert found["test/top1"] == 1
    assert torch.equal(other.head.weight, task.head.weight)


@pytest.fixture
def saved(classes, fit):
    """Return the task of a short run, of which run.ckpt is."""
    task, trainer = fit(classes, ONE_STEP | {"limit_val_batches": 0})
    trainer.save_checkpoint("run.ckpt")
    return task


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_checkpoint_of_other_classes_is_refused(saved, classes, tmp_path, folders, data_of, trainer_of, verb):
    assert torch.load("run.ckpt", weights_only=True)["workbench"]["class_names"] == [
        "blue bird",
        "green frog",
        "red fox",
    ]
    more = folders(tmp_path / "more", [*NAMES, "white_owl"])
    for data, words in (
        (data_of(classes, class_names=["blue bird", "green frog", "fox"]), "class 2 is 'red fox' there and 'fox' here"),
        (data_of(more), "class 3 is none there and 'white owl' here"),
    ):
        trainer = trainer_of()
        with pytest.raises(UserError, match=f"other classes than the data's: {words}"):
            getattr(trainer, verb)(task_of(), data, ckpt_path="run.ckpt")
        assert trainer.global_step == 0


def test_the_order_of_classes_matters():
    require_same_classes(["a", "b"], ("a", "b"))
    with pytest.raises(UserError, match="class 0 is 'a' there and 'b' here, which are the same in another order"):
        require_same_classes(["a", "b"], ["b", "a"])


def test_a_checkpoint_without_a_head_is_refused(classes, data_of, trainer_of):
    trainer = trainer_of(max_steps=1, limit_val_batches=0)
    trainer.fit(ContrastiveTask(architecture="tiny-vit", warmup=0), data_of(classes))
    trainer.save_checkpoint("pairs.ckpt")
    with pytest.raises(UserError, match="it holds clip, and ClassificationTask has clip, head"):
        trainer_of().validate(task_of(), data_of(classes), ckpt_path="pairs.ckpt")


def test_its_weights_are_those_of_the_clip_inside(saved, classes, data_of, trainer_of):
    model, _ = workbench.load("run.ckpt", device="cpu")
    for name, value in saved.clip.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    again = task_of(weights="run.ckpt")
    trainer_of().validate(again, data_of(classes), verbose=False)
    assert torch.equal(again.clip.visual.proj, saved.clip.visual.proj)
    assert not torch.equal(again.head.weight, saved.head.weight), "it is new: the text tower's classifier"


def test_the_canary_sings(classes, fit, data_of):
    monitor = ZeroShotMonitor(data_of(classes), name="canary")
    task, trainer = fit(classes, {"callbacks": [monitor]})
    found = values(trainer)
    assert found["canary/zero_shot_top1_start"] == found["val/top1_start"]
    assert found["canary/zero_shot_top1"] == pytest.approx(zero_shot(task, data_of(classes))["classes/zero_shot_top1"])


# What is refused


@pytest.mark.parametrize(
    "options, words",
    [
        ({"head_init": "random"}, "head_init is 'random'; there are zero_shot, probe, zeros"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"probe_strength": 1.0}, "together with head_init probe alone"),
        ({"head_init": "probe", "probe_strength": 0.0}, "probe_strength is 0.0"),
    ],
)
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(UserError, match=words):
        ClassificationTask(architecture="tiny-vit", **options)


def test_data_without_classes(classes, tmp_path, folders, data_of, trainer_of):
    pictures = sorted((classes / "train").rglob("*.png"))
    rows = [f"{path},{path.parent.name} {path.stem}" for path in pictures]
    Path("pairs.csv").write_text("\n".join(["filepath,caption", *rows]))
    task, trainer = task_of(), trainer_of()
    with pytest.raises(UserError, match="pictures of classes, and ImageTextDataModule has none: .*--data"):
        trainer.fit(task, ImageTextDataModule("pairs.csv", batch_size=8, image_size=32, num_workers=0))
    assert task.clip is None and trainer.global_step == 0
    with pytest.raises(UserError, match="the data have one, 'red fox'"):
        trainer_of().fit(task_of(), data_of(folders(tmp_path / "one", ["red_fox"], train=12)))


# The command line


@pytest.mark.parametrize("experiment", ["ft_classifier", "ft_lp_ft"])
def test_an_experiment_from_its_fit_to_its_test(classes, tmp_path, folders, capsys, experiment):
    of_all = [
        *("--model.init_args.architecture", "tiny-vit", "--model.init_args.weights", "null"),
        *("--data.dataset", "null", "--data.root", str(classes), "--data.batch_size", "12", "--data.num_workers", "0"),
        *("--data.val_fraction", "null", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"),
    ]
    assert main(["fit", "--config", str(ROOT / "experiments" / f"{experiment}.yaml"), *of_all]) == 0
    run = tmp_path / "runs" / experiment / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 4)
    assert summary["best_checkpoint"] == "checkpoints/best.ckpt"
    expected = {f"val/{name}{suffix}" for name in ("loss", "top1", "mean_per_class") for suffix in ("", "_start")}
    assert expected <= set(summary["metrics"]) and expected <= set(summary["chance"])
    assert "val/top1_start" in capsys.readouterr().out, "in the table at the end"
    config, last = ["--config", str(run / "config.yaml")], str(run / "checkpoints" / "last.ckpt")
    assert main(["test", *config, "--ckpt_path", last]) == 0
    assert "test/top1" in capsys.readouterr().out
    assert main(["fit", *config, "--ckpt_path", last, "--trainer.max_epochs", "3"]) == 0
    after = json.loads((run / "summary.json").read_text())
    assert after["step"] == 6
    assert after["metrics"]["val/top1_start"]["value"] == summary["metrics"]["val/top1_start"]["value"]
    capsys.readouterr()
    other = ["--data.root", str(folders(tmp_path / "other", ["blue_bird", "green_frog", "white_owl"]))]
    assert main(["test", *config, "--ckpt_path", last, *other]) == 2
    assert capsys.readouterr().err.count("other classes than the data's") == 1
    assert main(["export", "--checkpoint", last, "--to", "safetensors", "--output", "exported"]) == 0
