"""Averages of the weights against a plain one in float64, in real runs."""

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.optim import AdamW

import workbench
from callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoint
from callbacks.weight_averaging import KEY, ExponentialMovingAverage, UniformWeightAverage
from datamodules import DigitsDataModule
from workbench.main import main
from workbench.tasks import ContrastiveTask

AVERAGES = {
    "ema": lambda: ExponentialMovingAverage(0.6),
    "ema without warm-up": lambda: ExponentialMovingAverage(0.9, warmup=False),
    "swa": lambda: UniformWeightAverage(0.4),
}
STEPS = 6


class Recorder(L.Callback):
    """Keep the weights of each step as they are when it ends, before or after an average has taken their place."""

    def __init__(self):
        self.weights, self.validated = [], []

    def on_train_start(self, trainer, pl_module):
        self.weights.append(weights_of(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(weights_of(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.validated.append(weights_of(pl_module))

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(weights_of(pl_module))


def weights_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def averaged(kind, recorded):
    """Return the average of recorded weights in float64, as its definition says; `recorded[0]` is the start."""
    recorded = [{key: value.double() for key, value in weights.items()} for weights in recorded]
    if kind == "swa":
        last = recorded[1 + math.floor(0.4 * STEPS) :]
        return {key: sum(weights[key] for weights in last) / len(last) for key in recorded[0]}
    average = recorded[0]
    for n, weights in enumerate(recorded[1:], start=1):
        d = min(0.6, (1 + n) / (10 + n)) if kind == "ema" else 0.9
        average = {key: d * average[key] + (1 - d) * weights[key] for key in average}
    return average


def train(*callbacks, steps=STEPS, devices=1, architecture="tiny-rn", checkpoint=None, task=None, **trainer):
    L.seed_everything(0, verbose=False)
    rate = {"warmup": 0, "schedule": "constant", "optimizer": lambda p: AdamW(p, lr=3e-3)}
    task = ContrastiveTask(architecture=architecture, **rate, **(task or {}))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    run = L.Trainer(
        **{**quiet, "limit_val_batches": 0, "num_sanity_val_steps": 0, **trainer},
        enable_checkpointing=any(isinstance(each, RunCheckpoint) for each in callbacks),
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_fork",
        max_steps=steps,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks],
    )
    data = DigitsDataModule(batch_size=16, shots=8, image_size=32, num_workers=0)
    run.fit(task, datamodule=data, ckpt_path=checkpoint)
    return task


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("kind", AVERAGES)
def test_the_average_is_that_of_the_recorded_weights(kind):
    """Training is not changed by it, and what the run ends with, validates and keeps is the average."""
    plain, watched = Recorder(), Recorder()
    train(plain)
    average = AVERAGES[kind]()
    validation = {"limit_val_batches": 2, "val_check_interval": STEPS, "check_val_every_n_epoch": None}
    task = train(watched, average, RunCheckpoint(every_n_steps=4), **validation)
    assert not average._other, "freed"
    expected = averaged(kind, plain.weights)
    kept = torch.load("checkpoints/last.ckpt", weights_only=True)
    for ended in (weights_of(task), kept["state_dict"], *watched.validated):
        for key, value in expected.items():
            if key.endswith("num_batches_tracked"):
                assert ended[key] == STEPS
            else:
                assert torch.allclose(ended[key].double(), value, rtol=0, atol=2e-6), key
    apart = {key for key, value in plain.weights[-1].items() if not torch.equal(value, kept["state_dict"][key])}
    assert {"clip.logit_scale", "clip.visual.bn1.running_var", "clip.visual.conv1.weight"} <= apart
    trained = kept[KEY]["trained"]
    same(trained, {key: plain.weights[-1][key] for key in trained})
    assert {key for key in kept["state_dict"] if key not in trained} == {
        key for key in kept["state_dict"] if key.endswith("num_batches_tracked")
    }
    if kind == "swa":
        same(watched.weights[2], plain.weights[2])  # not begun
    assert len(watched.validated) == 3
    same(watched.weights[-1], kept["state_dict"])  # though the average is later in the list


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("at", [2, 4])
def test_resuming_is_exact(kind, at, tmp_path):
    """Before the uniform average begins, and after."""

    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == at:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    kept = RunCheckpoint(every_n_steps=100)
    whole = Recorder()
    train(AVERAGES[kind](), whole, Copy(), kept)
    Path("checkpoints/last.ckpt").rename("whole.ckpt")
    half = Recorder()
    train(AVERAGES[kind](), half, RunCheckpoint(every_n_steps=100), checkpoint=tmp_path / "half.ckpt")
    for one, other in zip(whole.weights[at:], half.weights, strict=True):
        same(one, other)
    one, other = (torch.load(path, weights_only=True) for path in ("whole.ckpt", "checkpoints/last.ckpt"))
    same(one["state_dict"], other["state_dict"])
    same(one[KEY]["trained"], other[KEY]["trained"])
    assert one[KEY]["count"] == other[KEY]["count"] == (STEPS if kind == "ema" else 4)
    for state, again in zip(*(each["optimizer_states"][0]["state"].values() for each in (one, other)), strict=True):
        assert torch.equal(state["exp_avg_sq"], again["exp_avg_sq"])


def test_a_longer_run_averages_its_own_last_part():
    """From the end of a run: training goes on from the trained weights, as if it had never been shorter."""
    plain, longer = Recorder(), Recorder()
    train(plain, steps=2 * STEPS)
    train(UniformWeightAverage(0.75), RunCheckpoint(), steps=STEPS)
    train(UniformWeightAverage(0.75), longer, RunCheckpoint(), steps=2 * STEPS, checkpoint="checkpoints/last.ckpt")
    same(longer.weights[3], plain.weights[9])
    last = [weights["clip.visual.conv1.weight"].double() for weights in plain.weights[10:]]
    found = longer.weights[-1]["clip.visual.conv1.weight"].double()
    assert torch.allclose(found, sum(last) / 3, rtol=0, atol=1e-6)


def test_accumulation_averages_steps_and_not_batches():
    plain, average = Recorder(), ExponentialMovingAverage(0.9, warmup=False)
    options = {"steps": 3, "accumulate_grad_batches": 2, "architecture": "tiny-vit"}
    train(plain, **options)
    found = weights_of(train(average, **options))
    expected = averaged("ema without warm-up", [plain.weights[n] for n in (0, 2, 4, 5)])  # an epoch has five batches
    for key, value in expected.items():
        assert torch.allclose(found[key].double(), value, rtol=0, atol=1e-6), key


def test_what_is_not_learned_is_not_averaged():
    """A scheduled temperature is where its schedule has it; of an adapter, the adapter alone has an average."""
    task = train(ExponentialMovingAverage(0.9), task={"temperature_end": 0.02}, architecture="tiny-vit")
    assert float(task.clip.logit_scale.exp()) == pytest.approx(50)


class Ends(L.Callback):
    def on_train_end(self, trainer, pl_module):
        torch.save(weights_of(pl_module), f"{trainer.world_size}-{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_have_one_average():
    for devices in (1, 2):
        train(AVERAGES["ema"](), Ends(), RunCheckpoint(), devices=devices, architecture="tiny-vit", steps=4)
        Path("checkpoints/last.ckpt").rename(f"{devices}.ckpt")
    one, first, second = (torch.load(name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    same(first, second)
    same(first, torch.load("2.ckpt", weights_only=True)["state_dict"])
    for key, value in one.items():
        if not key.endswith("in_proj_bias"):  # of keys the gradient is 0 but for rounding, which Adam makes a step of
            assert (value - first[key]).abs().mean() < 1e-5, key
    train(AVERAGES["ema"](), Ends(), devices=2, architecture="tiny-vit", steps=5, checkpoint="2.ckpt")
    same(torch.load("2-0.pt"), torch.load("2-1.pt"))


# The command line


def configuration(averages, steps=4, monitors=(), **init_args):
    model = {
        "architecture": "tiny-vit",
        "warmup": 0,
        "schedule": "constant",
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-2}},
        **init_args,
    }
    return {
        "experiment": "digits",
        "model": {"class_path": "ContrastiveTask", "init_args": model},
        "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 16, "shots": 8, "num_workers": 0}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": -1,
            "max_steps": steps,
            "log_every_n_steps": 1,
            "limit_val_batches": 1.0,
            "val_check_interval": steps,
            "check_val_every_n_epoch": None,
            "callbacks": [*monitors, *averages],
        },
    }


def fit(config, *options):
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", "config.yaml", *options])


def summary_of(folder):
    return json.loads((Path("runs") / folder / "summary.json").read_text())


EMA = {"class_path": "ExponentialMovingAverage", "init_args": {"decay": 0.8}}
SWA = {"class_path": "UniformWeightAverage"}
TARGET = {"class_path": "ZeroShotMonitor", "init_args": {"name": "target"}}


def test_what_is_measured_loaded_and_exported_is_the_average(tmp_path):
    """Whatever the order of the callbacks, and against a run that starts from the checkpoint and does not train."""
    config = configuration([EMA], monitors=[TARGET])
    config["checkpoint"] = {"monitor": "target/zero_shot_top1"}
    assert fit(config) == 0
    folder = Path("runs/digits/0")
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {key.removeprefix("clip."): value for key, value in kept["state_dict"].items()}
    assert not torch.equal(weights["ln_final.weight"], kept[KEY]["trained"]["clip.ln_final.weight"])
    same(torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"], kept["state_dict"])
    same(workbench.load(folder / "checkpoints" / "last.ckpt")[0].state_dict(), weights)
    exported = ["export", "--checkpoint", str(folder / "checkpoints" / "last.ckpt"), "--output", "exported"]
    assert main([*exported, "--to", "safetensors"]) == 0
    same(workbench.load("exported/model.safetensors")[0].state_dict(), weights)
    # The same weights, validated by a run that has no average.
    again = configuration([], steps=1, monitors=[TARGET], weights=str(folder / "checkpoints" / "last.ckpt"))
    again["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0
    assert fit(again) == 0
    first, second = (summary_of(f"digits/{number}") for number in (0, 1))
    assert first["watched"]["target"]["now"] == second["watched"]["target"]["start"]
    assert first["metrics"]["val/loss"]["value"] == pytest.approx(second["metrics"]["val/loss"]["value"], rel=1e-6)
    # And by the verb that measures.
    options = ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    assert main(["validate", "--config", str(folder / "config.yaml"), *options]) == 0


@pytest.mark.slow
def test_an_adapters_checkpoint_has_its_average():
    assert fit(configuration([], steps=1)) == 0
    start = "runs/digits/0/checkpoints/last.ckpt"
    options = {"weights": start, "lora": {"rank": 2, "alpha": 4}}
    assert fit(configuration([EMA], steps=3, **options)) == 0
    kept = torch.load("runs/digits/1/checkpoints/last.ckpt", weights_only=True)
    assert set(kept[KEY]["trained"]) <= set(kept["state_dict"])
    assert all("lora" in key for key in kept[KEY]["trained"])
    assert fit(configuration([EMA], steps=3, **options), "--trainer.limit_val_batches", "0") == 0
    assert fit(configuration([EMA], steps=5, **options), "--ckpt_path", "runs/digits/1/checkpoints/last.ckpt") == 0


def test_a_checkpoint_of_before_starts_the_average_and_another_kind_is_refused(capsys):
    assert fit(configuration([], steps=2)) == 0
    resume = ["--ckpt_path", "runs/digits/0/checkpoints/last.ckpt"]
    before = torch.load(resume[1], weights_only=True)["state_dict"]
    assert fit(configuration([EMA], steps=3), *resume) == 0
    kept = torch.load(resume[1], weights_only=True)
    d, key = 2 / 11, "clip.ln_final.weight"
    expected = d * before[key] + (1 - d) * kept[KEY]["trained"][key]
    assert torch.allclose(kept["state_dict"][key], expected, atol=1e-6)
    capsys.readouterr()
    assert fit(configuration([SWA], steps=5), *resume) == 2
    assert (
        "--ckpt_path has an average of kind ema and this run makes one of kind swa: resume" in capsys.readouterr().err
    )


MOVES = {"name": "target", "alarm": 5, "on_alarm": "interpolate"}


@pytest.mark.parametrize(
    "callbacks, said",
    [
        ([{"class_path": EMA["class_path"], "init_args": {"decay": 1.0}}], "decay is 1.0; give a number from 0 to"),
        ([{"class_path": SWA["class_path"], "init_args": {"start": 1.0}}], "start is 1.0; give the share of the run"),
        ([EMA, SWA], "Two averages of weights are in trainer.callbacks; leave one out."),
        (
            [EMA, {**TARGET, "init_args": MOVES}],
            "the monitor 'target' with on_alarm: interpolate would move the average",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_run_folder(callbacks, said, capsys):
    assert fit(configuration(callbacks)) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()
