"""WeightInterpolation at the end of real runs, on pictures that are drawn here."""

import csv
import json
import os
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import workbench
from callbacks.checkpoint import RunCheckpoint
from callbacks.weight_interpolation import WeightInterpolation
from datamodules import ClassificationDataModule
from workbench.averaging.tradeoff import trace
from workbench.distributed import rank
from workbench.interpolation import interpolate, straightened
from workbench.main import main
from workbench.tasks import ContrastiveTask
from workbench.weights import read_weights

COLOURS = {"target": ("red", "green", "blue"), "others": ("black", "white")}
FT = Path("runs/ft/0")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two folders of classes: what is trained on, and what should not be forgotten."""
    folder = tmp_path_factory.mktemp("colours")
    for data, names in COLOURS.items():
        for split, count in (("train", 4), ("val", 3), ("test", 1)):
            for name in names:
                (folder / data / split / name).mkdir(parents=True)
                for number in range(count):
                    picture = Image.new("RGB", (40, 40), name)
                    picture.paste((99, 60 * number, 99), (0, 0, 5 + 6 * number, 5 + len(split)))
                    picture.save(folder / data / split / name / f"{number}.png")
    return folder


def data_of(pictures, name="target"):
    return {"class_path": "ClassificationDataModule", "init_args": {"root": str(pictures / name), "num_workers": 0}}


def written(pictures, task=None, interpolation=None, monitor=None, monitors=1):
    """Write an experiment's YAML of four steps; without `interpolation` it has no WeightInterpolation."""
    watch = {"name": "others", "data": data_of(pictures, "others")} | (monitor or {})
    callbacks = [{"class_path": "ZeroShotMonitor", "init_args": watch}] * monitors
    if interpolation is not None:
        callbacks.append({"class_path": "WeightInterpolation", "init_args": interpolation})
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    model = {"class_path": "ContrastiveTask", "init_args": {"architecture": "tiny-vit", "warmup": 0}}
    model = {**model, **(task or {})}
    model["init_args"] = {"optimizer": optimizer, **model["init_args"]}
    data = data_of(pictures)
    data["init_args"]["batch_size"] = 6
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, "max_steps": 4, "enable_progress_bar": False}
    content = {"experiment": "ft", "trainer": {**trainer, "callbacks": callbacks}, "model": model, "data": data}
    Path("ft.yaml").write_text(yaml.safe_dump(content))
    return ["fit", "--config", "ft.yaml"]


def state_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(first, second):
    return first.keys() == second.keys() and all(value.equal(second[key]) for key, value in first.items())


def rows_of(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """The folder of a run of four steps with three alphas."""
    folder, before = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(folder)
    try:
        assert main(written(pictures, interpolation={"alphas": 3})) == 0
    finally:
        os.chdir(before)
    return folder / FT


def test_a_whole_run(finished):
    files = ("start.ckpt", "interpolated.ckpt", "last.ckpt")
    start, chosen, end = (state_of(finished / "checkpoints" / name) for name in files)
    found = json.loads((finished / "interpolation.json").read_text())
    assert same(chosen, interpolate(start, end, found["chosen"]))
    rows = rows_of(finished / "interpolation.csv")
    assert [float(row["alpha"]) for row in rows] == [0, 0.5, 1]
    best = max(rows, key=lambda row: (float(row["target"]) + float(row["canary"]), -float(row["alpha"])))
    assert found["chosen"] == float(best["alpha"]) and "best mean of target and canary" in found["rule"]

    summary = json.loads((finished / "summary.json").read_text())
    metrics = {name: each["value"] for name, each in summary["metrics"].items() if name.startswith("interpolation/")}
    expected = {"interpolation/alpha": found["chosen"]}
    for name, row in (("start", rows[0]), ("end", rows[-1]), ("chosen", best)):
        expected |= {f"interpolation/{key}_{name}": float(row[key]) for key in ("target", "canary")}
    assert metrics == expected and summary["status"] == "finished"
    assert summary["metrics"]["interpolation/alpha"]["step"] == 4
    watched = summary["watched"]["others"]
    assert (watched["start"], watched["now"]) == (float(rows[0]["canary"]), float(rows[-1]["canary"]))

    events = EventAccumulator(str(finished))
    events.Reload()
    assert [event.step for event in events.Scalars("interpolation/target")] == [0, 50, 100]
    assert "interpolation/target_and_canary" in events.Tags()["images"]
    assert Image.open(finished / "pictures/interpolation/step_4.png").width > 500


def test_the_runs_own_weights_are_not_touched(pictures, finished, capsys):
    """Without the callback a run has the same end, and no start to be resumed with it."""
    assert main(written(pictures)) == 0
    last = FT / "checkpoints/last.ckpt"
    assert same(state_of(finished / "checkpoints/last.ckpt"), state_of(last))
    assert not (FT / "checkpoints/start.ckpt").exists()
    options = written(pictures, interpolation={})
    assert main([*options, "--ckpt_path", str(last), "--trainer.max_steps", "5"]) == 2
    assert "run `python -m workbench interpolate` afterwards" in capsys.readouterr().err


def test_interpolated_weights_start_another_run_but_resume_none(finished, capsys):
    path = str(finished / "checkpoints/interpolated.ckpt")
    about = torch.load(path, weights_only=True)["workbench"]["weights_source"]["interpolation"]
    assert about["alpha"] == json.loads((finished / "interpolation.json").read_text())["chosen"]
    state = {key.removeprefix("clip."): value for key, value in state_of(path).items()}
    assert same(dict(workbench.load(path)[0].state_dict()), state)
    assert main(["fit", "--config", str(finished / "config.yaml"), "--ckpt_path", path]) == 2
    assert "holds weights alone, without the optimizer's state" in capsys.readouterr().err


def test_a_resumed_run_has_the_start_that_it_had(pictures, finished):
    options = [*written(pictures, interpolation={"alphas": 3}), "--model.init_args.schedule", "constant"]
    assert main([*options, "--trainer.max_steps", "2"]) == 0
    last = str(FT / "checkpoints/last.ckpt")
    assert main([*options, "--ckpt_path", last]) == 0
    first = state_of(finished / "checkpoints/start.ckpt")
    assert same(first, state_of(FT / "checkpoints/start.ckpt"))
    assert rows_of(FT / "interpolation.csv")[0] == rows_of(finished / "interpolation.csv")[0]
    end = state_of(last)
    alpha = json.loads((FT / "interpolation.json").read_text())["chosen"]
    assert not same(first, end) and same(state_of(FT / "checkpoints/interpolated.ckpt"), interpolate(first, end, alpha))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.unlink(), "The weights that the run started from are not in"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is not what the run started from"),
    ],
)
def test_a_start_that_is_gone_or_another_is_refused(finished, capsys, spoil, said):
    shutil.copytree(finished / "checkpoints", "checkpoints")
    spoil(Path("checkpoints/start.ckpt"))
    resume = ["--config", str(finished / "config.yaml"), "--ckpt_path", "checkpoints/last.ckpt"]
    assert main(["fit", *resume, "--trainer.max_steps", "5"]) == 2
    assert said in capsys.readouterr().err


class Stop(L.Callback):
    """Ask for a stop as Ctrl-C does."""

    def on_train_batch_end(self, trainer, *_):
        for callback in trainer.callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.interrupted = "SIGINT"


def test_an_interrupted_run_is_not_held_up(pictures):
    L.seed_everything(0, verbose=False)
    data = ClassificationDataModule(str(pictures / "target"), image_size=32, batch_size=6, num_workers=0)
    interpolation = WeightInterpolation(2)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=4, callbacks=[Stop(), interpolation, RunCheckpoint()], **options)
    trainer.fit(ContrastiveTask(architecture="tiny-vit", warmup=0), datamodule=data)
    assert trainer.global_step == 1 and interpolation.curve is None


def test_two_processes_find_what_one_does(pictures, monkeypatch):
    """Of a ResNet, whose running statistics differ between processes, the first one's count, as in its checkpoint."""

    def spied(module, encoder, panel, start, end, alphas):
        torch.save({"state_dict": end}, f"end{rank()}.pt")
        return trace(module, encoder, panel, start, end, alphas)

    monkeypatch.setattr("callbacks.weight_interpolation.trace", spied)
    arguments = {"architecture": "tiny-rn", "warmup": 0, "batch_norm": "batch"}
    options = written(pictures, {"init_args": arguments}, interpolation={"alphas": 3})
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert main([*options, *two, "--trainer.limit_val_batches", "0"]) == 0  # after which they would be the same
    start, end = (state_of(FT / "checkpoints" / file) for file in ("start.ckpt", "last.ckpt"))
    assert same(state_of("end0.pt"), end) and same(state_of("end1.pt"), end)
    alpha = json.loads((FT / "interpolation.json").read_text())["chosen"]
    assert same(state_of(FT / "checkpoints/interpolated.ckpt"), interpolate(start, end, alpha))
    args = ["--end", str(FT / "checkpoints/last.ckpt"), "--alphas", "3", "--output", "again"]
    assert main(["interpolate", *args]) == 0
    assert rows_of("again/curve.csv") == rows_of(FT / "interpolation.csv")


def test_a_head_is_interpolated_and_asked(pictures):
    """Of ClassificationTask the target is the head's accuracy, and the head is between start and end as well."""
    task = {"class_path": "ClassificationTask", "init_args": {"architecture": "tiny-vit", "warmup": 0}}
    assert main(written(pictures, task, interpolation={"alphas": 3})) == 0
    start, chosen, end = (
        state_of(FT / "checkpoints" / name) for name in ("start.ckpt", "interpolated.ckpt", "last.ckpt")
    )
    found = json.loads((FT / "interpolation.json").read_text())
    assert "head.weight" in chosen and same(chosen, interpolate(start, end, found["chosen"]))
    assert not start["head.weight"].equal(end["head.weight"])
    assert found["target"]["metric"] == "top1"
    metrics = json.loads((FT / "summary.json").read_text())["metrics"]
    assert metrics["val/top1"]["step"] == 4
    assert metrics["interpolation/target_end"]["value"] == pytest.approx(metrics["val/top1"]["value"])


def test_an_adapter_moves_on_a_straight_line(pictures, finished):
    """What LoRA adds to a weight is alpha times what it adds at the end, as if it had been merged before."""
    base = str(finished / "checkpoints/last.ckpt")
    arguments = {"weights": base, "architecture": "tiny-vit", "warmup": 0, "lora": {"alpha": 2000}}
    assert main(written(pictures, {"init_args": arguments}, interpolation={"alphas": 5})) == 0
    args = ["--end", str(FT / "checkpoints/last.ckpt"), "--alphas", "5", "--output", "merged"]
    assert main(["interpolate", *args]) == 0
    assert main(["interpolate", *args[:-1], "from_base", "--start", base]) == 0
    rows = rows_of(FT / "interpolation.csv")
    assert rows == rows_of("merged/curve.csv") == rows_of("from_base/curve.csv")
    assert len({(row["target"], row["canary"]) for row in rows}) > 2
    state = read_weights(FT / "checkpoints/interpolated.ckpt").state_dict
    expected = workbench.load("merged/chosen.safetensors")[0].state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)


def test_straightened_adapters():
    """Half of the end's change at 1/2; of both factors interpolated it would be something else."""
    generator = torch.Generator().manual_seed(0)
    first, second, b = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    names = ("attn.lora.q.A", "attn.lora.q.B", "w")
    start = dict(zip(names, (first, torch.zeros(3, 2).double(), b), strict=True))
    end = dict(zip(names, (second, b.T, b), strict=True))
    half = interpolate(straightened(start, end), end, 0.5)
    torch.testing.assert_close(half[names[1]] @ half[names[0]], 0.5 * b.T @ second)
    bent = interpolate(start, end, 0.5)
    assert not torch.allclose(bent[names[1]] @ bent[names[0]], 0.5 * b.T @ second)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"monitor": {"split": "test"}}, "measures test data"),
        ({"monitor": {"name": "val"}}, "Two sets of data are measured as 'val'"),
        ({"interpolation": {"keep": 0}}, "keep is 0"),
        ({"interpolation": {"alphas": 1}}, "alphas is 1"),
        ({"interpolation": {"keep": 0.9}, "monitors": 0}, "and there is none"),
        (
            {"task": {"class_path": "TipAdapterTask", "init_args": {"architecture": "tiny-vit"}}},
            "nothing to interpolate",
        ),
    ],
)
def test_mistakes_are_refused_before_the_first_step(pictures, capsys, changes, said):
    assert main(written(pictures, **{"interpolation": {}, **changes})) == 2
    assert said in capsys.readouterr().err
    assert not any(Path("runs").rglob("*.ckpt"))
