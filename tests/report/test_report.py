"""Tables of real runs of tiny models."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from workbench.main import main


def fit(experiment, lr, monitors):
    optimizer = {"class_path": "AdamW", "init_args": {"lr": lr}}
    model = {"architecture": "tiny-vit", "warmup": 0, "optimizer": optimizer}
    if experiment == "frozen":
        model["parameter_rules"] = [{"match": r"visual\.", "lr": 0}]
    config = {
        "experiment": experiment,
        "model": {"class_path": "ContrastiveTask", "init_args": model},
        "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 16, "shots": 8, "num_workers": 0}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": -1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "callbacks": monitors,
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder with one run that watches what it forgets, and one that does not."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = {"class_path": "DigitsDataModule", "init_args": {"num_workers": 0}}
        monitors = [
            {"class_path": "ZeroShotMonitor", "init_args": {"name": "target"}},
            {"class_path": "ZeroShotMonitor", "init_args": {"name": "digits", "data": data, "samples": 40}},
        ]
        fit("watched", 1e-2, monitors)
        fit("frozen", 1e-3, [])
    return folder / "runs"


@pytest.fixture
def runs(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "runs")).relative_to(tmp_path)


def table(capsys, *args):
    capsys.readouterr()
    assert main(["report", *map(str, args), "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_what_each_run_gained_and_forgot(runs, capsys):
    watched, frozen = table(capsys, runs / "watched" / "0", runs / "frozen")
    summary = json.loads((runs / "watched/0/summary.json").read_text())
    target, digits = (summary["watched"][name] for name in ("target", "digits"))
    assert watched["run"] == "watched/0" and frozen["run"] == "frozen/0"
    assert watched["target"] == "target/zero_shot_top1"
    assert [float(watched[key]) for key in ("start", "end")] == [target["start"], target["now"]]
    assert float(watched["gained"]) == pytest.approx(-target["drop"], abs=1e-5)
    assert [float(watched[f"digits {key}"]) for key in ("start", "now", "drop")] == [
        digits[key] for key in ("start", "now", "drop")
    ]
    assert float(watched["share"]) == 1.0 and 0 < float(frozen["share"]) < 1
    assert int(watched["trained"]) == summary["parameters"]["total"] > int(frozen["trained"])
    assert watched["method"] == "ContrastiveTask optimizer.lr=0.01"
    assert frozen["method"].startswith("ContrastiveTask optimizer.lr=0.001 parameter_rules=")
    for row in (watched, frozen):
        assert (row["steps"], row["status"]) == ("2", "finished") and float(row["seconds"]) > 0 and row["device"]
    assert {frozen[key] for key in ("target", "start", "gained", "digits start", "digits drop")} == {""}


def test_a_folder_stands_for_its_experiments_and_an_experiment_for_its_newest(runs, capsys):
    for version in ("2", "10"):
        shutil.copytree(runs / "watched/0", runs / "watched" / version)
    (runs / "watched/10/summary.json").unlink()  # killed
    frozen, killed = table(capsys, runs)
    assert (frozen["run"], killed["run"]) == ("frozen/0", "watched/10")
    assert {killed[key] for key in ("status", "steps", "target", "trained", "seconds")} == {""}
    both = table(capsys, runs / "watched/2", runs / "watched/0", runs / "watched/2")
    assert [row["run"] for row in both] == ["watched/2", "watched/0"]
    assert {row["method"] for row in both} == {"ContrastiveTask"}, "nothing differs"


def test_chosen_weights_are_a_row_more(runs, capsys):
    path = runs / "watched/0/summary.json"
    summary = json.loads(path.read_text())
    found = {"alpha": 0.5, "target_start": 0.1, "target_end": 0.4, "target_chosen": 0.3}
    found |= {"canary_start": 0.8, "canary_end": 0.2, "canary_chosen": 0.7}
    summary["metrics"] |= {f"interpolation/{key}": {"value": value, "step": 2} for key, value in found.items()}
    path.write_text(json.dumps(summary))
    for file in (None, [{"alpha": 0.0, "canary/digits": 0.8}, {"alpha": 0.5, "canary/digits": 0.7}]):
        if file is not None:
            (runs / "watched/0/interpolation.json").write_text(json.dumps({"models": file}))
        first, chosen = table(capsys, runs / "watched")
        assert chosen["method"] == f"{first['method']}, WiSE-FT alpha 0.50"
        numbers = [float(chosen[key]) for key in ("start", "end", "gained", "digits now", "digits drop")]
        assert numbers == pytest.approx([0.1, 0.3, 20, 0.7, 10])


def test_formats(runs, capsys):
    assert main(["report", str(runs), "--output", "table.txt"]) == 0
    assert capsys.readouterr().out == "Written: table.txt\n"
    head, rule, *rows = Path("table.txt").read_text().splitlines()
    assert head.split()[:3] == ["run", "method", "target"] and set(rule) == {"-", " "} and len(rows) == 2
    assert "folder" not in head
    for name, lines in (("markdown", 4), ("latex", 8)):
        assert main(["report", str(runs), "--format", name]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == lines
        if name == "markdown":
            assert len({line.replace("\\|", "").count("|") for line in printed}) == 1
        else:
            assert printed[0].startswith(r"\begin{tabular}{l") and r"target/zero\_shot\_top1" in "".join(printed)
            assert len({line.count(" & ") for line in printed if line.endswith(r"\\")}) == 1


def test_what_is_no_run_is_refused(runs, capsys):
    Path("empty").mkdir()
    damaged = runs / "frozen/0/summary.json"
    damaged.write_text("{")
    for args, said in (
        (["empty"], "empty holds no run; a run is a folder such as runs/quickstart/0"),
        ([str(runs), "missing"], "missing is no folder"),
        ([str(runs / "frozen")], "summary.json cannot be read"),
        ([], "runs missing; --help lists the options"),
        (["empty", "--format", "html"], "format"),
        ([str(runs / "watched"), "--output", "empty"], "--output empty cannot be written"),
    ):
        assert main(["report", *args]) == 2
        assert said in capsys.readouterr().err
