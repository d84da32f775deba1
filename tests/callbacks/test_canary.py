"""What the weights knew is watched in real runs: colours that a tiny model tells apart, forgotten for digits."""

import json
import os
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import AdamW

from callbacks.evaluation import evaluating
from callbacks.holding_back import hold_back, starting_weights
from callbacks.zero_shot_monitor import ZeroShotMonitor
from datamodules import ClassificationDataModule, DigitsDataModule
from workbench.interpolation import interpolate
from workbench.main import main
from workbench.tasks import ContrastiveTask

DEFAULTS = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "devices": 1}
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
INTERPOLATE = {"every_n_steps": 3, "alarm": 20, "on_alarm": "interpolate"}


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Folders of six colours, and the weights of a model that knows them all by name."""
    folder = tmp_path_factory.mktemp("colours")
    for name in COLOURS:
        (folder / "classes" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32 + number), name).save(folder / "classes" / name / f"{number}.png")
    L.seed_everything(0, verbose=False)
    options = {"batch_size": 6, "image_size": 32, "num_workers": 0}
    task = ContrastiveTask(
        architecture="tiny-vit", warmup=0, schedule="constant", optimizer=lambda p: AdamW(p, lr=1e-3)
    )
    monitor = ZeroShotMonitor(every_n_steps=10)

    class UntilKnown(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trainer.should_stop = monitor.now["zero_shot/zero_shot_top1"] == 1.0

    data = ClassificationDataModule(str(folder / "classes"), **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = L.Trainer(max_steps=400, callbacks=[monitor, UntilKnown()], **{**DEFAULTS, **quiet})
    trainer.fit(task, datamodule=data)
    assert monitor.start["zero_shot/zero_shot_top1"] < monitor.now["zero_shot/zero_shot_top1"] == 1.0
    trainer.save_checkpoint(folder / "knows.ckpt")
    return folder


def configuration(colours, monitors, steps, lr=1e-2, **trainer):
    """Train on digits with what knows colours."""
    options = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0, "callbacks": monitors}
    model = {
        "weights": str(colours / "knows.ckpt"),
        "warmup": 0,
        "schedule": "constant",
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": lr}},
    }
    return {
        "experiment": "digits",
        "model": {"class_path": "ContrastiveTask", "init_args": model},
        "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 16, "shots": 8, "num_workers": 0}},
        "trainer": {**DEFAULTS, **options, **trainer},
    }


def canary(colours, **options):
    data = {"class_path": "ClassificationDataModule", "init_args": {"root": str(colours / "classes"), "num_workers": 0}}
    return {"class_path": "ZeroShotMonitor", "init_args": {"name": "colours", "data": data, **options}}


def fit(config, *options):
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", "config.yaml", *options])


def summary_of(folder):
    return json.loads((Path("runs") / folder / "summary.json").read_text())


def checkpoint_of(folder, name="last"):
    return torch.load(Path("runs") / folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_start_and_now_side_by_side(colours, capsys):
    """The run's own classes and a canary: before the first step, with validations, every n steps, after the last."""
    target = {"class_path": "ZeroShotMonitor", "init_args": {"name": "target"}}
    monitors = [target, canary(colours, every_n_steps=3, alarm=30)]
    config = configuration(colours, monitors, 7, limit_val_batches=1.0, val_check_interval=4)
    config["checkpoint"] = {"monitor": "target/zero_shot_top1"}
    with pytest.warns(UserWarning, match="colours/zero_shot_top1 has fallen from 100.0% at the start to") as said:
        assert fit(config) == 0
    assert len([each for each in said if "has fallen" in str(each.message)]) == 1, "once"
    folder, summary = Path("runs/digits/0"), summary_of("digits/0")
    assert summary["status"] == "finished"
    watched, metrics = summary["watched"], summary["metrics"]
    assert list(watched) == ["target", "colours"]
    assert watched["target"]["own_data"] and not watched["colours"]["own_data"]
    assert (watched["colours"]["start"], watched["colours"]["start_step"], watched["colours"]["step"]) == (1.0, 0, 7)
    for name, row in watched.items():
        assert row["metric"] == f"{name}/zero_shot_top1"
        assert row["drop"] == pytest.approx(100 * (row["start"] - row["now"]), abs=1e-5)
        assert metrics[row["metric"]] == {"value": row["now"], "step": 7}
        assert metrics[f"{row['metric']}_start"]["value"] == row["start"]
        assert metrics[f"{name}/drop"]["value"] == pytest.approx(row["drop"], abs=1e-5)
    assert watched["colours"]["drop"] > 30
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    # Lightning counts the steps of what it logs from 0, but for the start and the end.
    steps = {tag: [event.step for event in events.Scalars(f"{tag}/drop")] for tag in watched}
    assert steps == {"target": [0, 3, 7], "colours": [0, 2, 3, 5, 7]}
    printed = capsys.readouterr().out
    shown = next(line for line in printed.splitlines() if line.startswith("colours/zero_shot_top1") and "alarm" in line)
    assert shown.split()[1:4] == ["100.0%", f"{watched['colours']['now']:.1%}", f"{watched['colours']['drop']:.1f}"]
    assert checkpoint_of("digits/0", "best")["global_step"] == 4


def test_what_was_measured_is_of_the_weights_of_that_step(colours, capsys):
    """The score beside a checkpoint is that of its weights."""
    assert fit(configuration(colours, [canary(colours)], 5, lr=1e-3)) == 0
    now = summary_of("digits/0")["watched"]["colours"]["now"]
    assert 0 < now < 1
    capsys.readouterr()
    options = ["--ckpt_path", "runs/digits/0/checkpoints/last.ckpt", "--trainer.limit_val_batches", "1"]
    assert main(["validate", "--config", "runs/digits/0/config.yaml", *options]) == 0
    printed = capsys.readouterr().out
    measured = {name: printed.split(f"colours/{name} ")[1].split()[1] for name in ("zero_shot_top1", "drop")}
    assert float(measured["zero_shot_top1"]) == pytest.approx(now)
    assert float(measured["drop"]) == pytest.approx(100 * (1 - now)), "the checkpoint knows the start"
    model = configuration(colours, [canary(colours)], 1, lr=0.0)
    model["model"]["init_args"]["weights"] = "runs/digits/0/checkpoints/last.ckpt"
    assert fit(model) == 0
    assert summary_of("digits/1")["watched"]["colours"]["start"] == now


def test_a_resumed_run_keeps_its_start(colours):
    monitors = [canary(colours, every_n_steps=2, alarm=99)]
    assert fit(configuration(colours, monitors, 8)) == 0
    assert fit(configuration(colours, monitors, 4)) == 0
    half = summary_of("digits/1")["watched"]["colours"]
    assert half["now"] < half["start"] == 1.0
    resume = ["--ckpt_path", "runs/digits/1/checkpoints/last.ckpt"]
    assert fit(configuration(colours, monitors, 8), *resume) == 0
    assert summary_of("digits/1")["watched"] == summary_of("digits/0")["watched"]
    same(checkpoint_of("digits/1")["state_dict"], checkpoint_of("digits/0")["state_dict"])


def test_a_canary_that_joins_later_says_from_where_it_counts(colours, capsys):
    other = {"class_path": "ZeroShotMonitor", "init_args": {"name": "target"}}
    assert fit(configuration(colours, [other], 2)) == 0
    resume = ["--ckpt_path", "runs/digits/0/checkpoints/last.ckpt"]
    other["init_args"] |= INTERPOLATE
    assert fit(configuration(colours, [other], 4), *resume) == 2
    assert "needs the starting weights, which the checkpoint's run did not keep" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="'colours', which it did not watch.*from step 2"):
        assert fit(configuration(colours, [canary(colours)], 4), *resume) == 0
    assert summary_of("digits/0")["watched"]["colours"]["start_step"] == 2


def test_an_alarm_stops_the_run(colours, capsys):
    config = configuration(colours, [canary(colours, every_n_steps=2, alarm=40, on_alarm="stop")], 40)
    with pytest.warns(UserWarning, match="points, and the alarm is at 40. The run ends here"):
        assert fit(config) == 0
    summary, last = summary_of("digits/0"), checkpoint_of("digits/0")
    assert summary["status"] == "stopped" and "the alarm is at 40" in summary["reason"]
    assert summary["step"] == last["global_step"] == summary["watched"]["colours"]["step"] < 40
    assert summary["watched"]["colours"]["drop"] > 40
    assert "train twice" not in capsys.readouterr().out


def test_weights_are_moved_back_exactly(colours):
    """To start + alpha (now - start), with the largest alpha of 1/2, 1/4, ... that is within; the optimizer stays."""
    assert fit(configuration(colours, [canary(colours)], 3)) == 0
    assert fit(configuration(colours, [canary(colours, **INTERPOLATE)], 3)) == 0
    start = torch.load(colours / "knows.ckpt", weights_only=True)["state_dict"]
    forgets, held = checkpoint_of("digits/0"), checkpoint_of("digits/1")
    watched = summary_of("digits/1")["watched"]["colours"]
    alpha = summary_of("digits/1")["metrics"]["colours/alpha"]["value"]
    assert summary_of("digits/0")["watched"]["colours"]["drop"] > 20 >= watched["drop"]
    assert alpha in [0.5**power for power in range(1, 11)]
    same(held["state_dict"], interpolate(start, forgets["state_dict"], alpha))
    for one, other in zip(
        held["optimizer_states"][0]["state"].values(), forgets["optimizer_states"][0]["state"].values(), strict=True
    ):
        same(one, other)
    # Twice as far would have been too far.
    again = configuration(colours, [canary(colours)], 1, lr=0.0)
    forgets["state_dict"] = interpolate(start, forgets["state_dict"], 2 * alpha)
    torch.save(forgets, "further.ckpt")
    again["model"]["init_args"]["weights"] = "further.ckpt"
    assert fit(again) == 0
    assert 100 * (watched["start"] - summary_of("digits/2")["watched"]["colours"]["start"]) > 20


def test_all_that_hold_back_are_within_their_alarms(colours):
    """A stricter one that is not due decides, and what a third says is of the weights that stay."""
    strict = canary(colours, name="strict", alarm=0, on_alarm="interpolate")
    monitors = [canary(colours, name="watches", every_n_steps=3), canary(colours, **INTERPOLATE), strict]
    assert fit(configuration(colours, monitors, 3)) == 0
    watched = summary_of("digits/0")["watched"]
    assert watched["strict"]["drop"] == 0
    assert {row["now"] for row in watched.values()} == {1.0}


@pytest.mark.parametrize("validation", [{}, {"limit_val_batches": 1.0, "val_check_interval": 3}])
def test_a_run_that_is_held_back_resumes_exactly(colours, validation):
    """From a checkpoint of the very step on which the weights were moved back, before its validation, too."""
    monitors = [canary(colours, **{**INTERPOLATE, "every_n_steps": None if validation else 3})]
    often = ["--checkpoint.every_n_steps", "3"]
    assert fit(configuration(colours, monitors, 7, **validation), *often) == 0
    assert fit(configuration(colours, monitors, 3, **validation), *often) == 0
    assert summary_of("digits/1")["metrics"]["colours/alpha"]["value"] < 1
    resume = ["--ckpt_path", "runs/digits/1/checkpoints/last.ckpt"]
    assert fit(configuration(colours, monitors, 7, **validation), *resume) == 0
    same(checkpoint_of("digits/1")["state_dict"], checkpoint_of("digits/0")["state_dict"])
    assert summary_of("digits/1")["watched"] == summary_of("digits/0")["watched"]


def test_the_end_is_held_back_though_its_checkpoint_was_written(colours):
    """The last step is no third one: only after it is measured what the run ends with."""
    monitors = [canary(colours, **{**INTERPOLATE, "every_n_steps": 100})]
    assert fit(configuration(colours, monitors, 4), "--checkpoint.every_n_steps", "1") == 0
    watched = summary_of("digits/0")["watched"]["colours"]
    assert watched["drop"] <= 20 and watched["step"] == 4
    again = configuration(colours, [canary(colours)], 1, lr=0.0)
    again["model"]["init_args"]["weights"] = "runs/digits/0/checkpoints/last.ckpt"
    assert fit(again) == 0
    assert summary_of("digits/1")["watched"]["colours"]["start"] == watched["now"]


class Ends(L.Callback):
    """Write what each process ends with."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        monitor = trainer.callbacks[0]
        found = {"start": monitor.start, "now": monitor.now, "alpha": monitor.alpha, "step": monitor.measured_at}
        torch.save({**found, "weights": pl_module.clip.state_dict()}, f"{self.path}{trainer.global_rank}.pt")


def test_two_processes_measure_and_move_back_the_same(colours, tmp_path):
    found = {}
    for devices in (1, 2):
        L.seed_everything(0, verbose=False)
        data = ClassificationDataModule(str(colours / "classes"), num_workers=0)
        path, weights = tmp_path / f"{devices}-", str(colours / "knows.ckpt")
        task = ContrastiveTask(weights=weights, warmup=0, schedule="constant", optimizer=lambda p: AdamW(p, lr=1e-2))
        L.Trainer(
            **{**DEFAULTS, "devices": devices},
            max_steps=3,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[ZeroShotMonitor(data, name="colours", **INTERPOLATE), Ends(path)],
            strategy="auto" if devices == 1 else "ddp_fork",
        ).fit(task, datamodule=DigitsDataModule(batch_size=16, image_size=32, num_workers=0))
        found[devices] = [torch.load(f"{path}{rank}.pt") for rank in range(devices)]
    (one,), (first, second) = found[1], found[2]
    _, *weights = (each.pop("weights") for each in (one, first, second))
    assert one == first == second and one["alpha"] < 1 and one["step"] == 3
    same(*weights)


def _own_statistics(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = torch.nn.BatchNorm1d(3)
    start = starting_weights(model)
    model.running_mean.fill_(1.0 + rank)
    assert hold_back(model, start, lambda: True) == 0.5
    torch.save(model.running_mean, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort the interpreter's end (pytorch #179291)


def test_of_running_statistics_the_first_processs_are_moved_back(tmp_path):
    """Under DDP each process has its own, and a checkpoint has the first one's."""
    mp.start_processes(_own_statistics, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == [0.5] * 3


def test_holding_back_restores_the_start_at_last():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    model[2].weight.requires_grad_(False)
    start = starting_weights(model)
    assert set(model.state_dict()) - set(start) == {"2.weight"}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(torch.randn(8, 3))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    asked = []
    assert hold_back(model, start, lambda: asked.append(1) is not None) == 0.0
    assert len(asked) == 11
    same(dict(model.state_dict()), before)


def test_measuring_leaves_frozen_parts_in_evaluation_mode():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout())
    module[0].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, False, True]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"on_alarm": "stop"}, "on_alarm is stop and there is no alarm; give it in points"),
        ({"alarm": 5, "on_alarm": "shout"}, "on_alarm is 'shout'; there are warn, stop, interpolate."),
        ({"alarm": -1}, "alarm is -1.0; it is in points, from 0 to 100"),
        ({"every_n_steps": 0}, "every_n_steps is 0; it is at least 1, or null"),
        ({"split": "mine"}, "ZeroShotMonitor 'colours': There is no split 'mine'"),
        ({"split": "test"}, "colours measures test data"),
        ({"samples": 0}, "ZeroShotMonitor 'colours': samples is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_run_folder(colours, capsys, options, said):
    if options.get("split") == "test":
        options = {**options, "data": "DigitsDataModule"}
    assert fit(configuration(colours, [canary(colours, **options)], 1)) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_two_of_one_name_are_refused(colours, capsys):
    other = {"class_path": "RetrievalMonitor", "init_args": {"name": "colours"}}
    for second in (canary(colours), other):
        assert fit(configuration(colours, [canary(colours), second], 1)) == 2
        assert "Two monitors are named 'colours'; give each" in capsys.readouterr().err
        assert not Path("runs").exists()


def test_a_set_too_small_for_the_processes_is_refused_before_the_run_folder(colours, capsys, monkeypatch):
    monkeypatch.setattr("datamodules.base.world_size", lambda: 8)
    assert fit(configuration(colours, [canary(colours, samples=7)], 1)) == 2
    assert "has 7 rows to measure on and there are 8 processes" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_pairs_have_no_classes_to_watch(colours, capsys):
    config = configuration(colours, [{"class_path": "ZeroShotMonitor", "init_args": {"name": "target"}}], 1)
    rows = "".join(f"{path}\t{path.parent.name}\n" for path in (colours / "classes").rglob("*.png"))
    Path("pairs.tsv").write_text(f"filepath\ttitle\n{rows}")
    init_args = {"train": "pairs.tsv", "val": "pairs.tsv", "root": "/", "batch_size": 4, "num_workers": 0}
    config["data"] = {"class_path": "ImageTextDataModule", "init_args": init_args}
    assert fit(config) == 2
    assert "ZeroShotMonitor 'target': ImageTextDataModule has no class names" in capsys.readouterr().err
    assert not Path("runs").exists()
