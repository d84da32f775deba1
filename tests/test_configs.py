"""Every YAML is read by the real command line; those that a CPU can run are run."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from workbench.main import main

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
FRAGMENTS = sorted((ROOT / "lightning_configs").rglob("*.yaml"))
QUICK, FT = (str(ROOT / "experiments" / f"{name}.yaml") for name in ("quickstart", "ft_rn50"))
CANARY = str(ROOT / "lightning_configs" / "canary.yaml")

TINY = [
    *("--model.init_args.architecture", "tiny-vit", "--data.batch_size", "64", "--data.num_workers", "0"),
    *("--trainer.max_epochs", "-1", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"),
    *("--trainer.callbacks", "[]"),
]


def test_the_files_are_those_that_the_tests_know():
    assert [path.stem for path in EXPERIMENTS] == [
        *("ft_classifier", "ft_coop", "ft_distill", "ft_flyp", "ft_layer_decay", "ft_lit", "ft_lora", "ft_lp_ft"),
        *("ft_rn50", "ft_siglip", "ft_tip_adapter", "ft_vit_b32", "pretrain_rn50", "pretrain_vit_b32"),
        *("probe_rn50", "quickstart"),
    ]
    assert [path.stem for path in FRAGMENTS] == [
        *("canary", "cpu", "ddp", "default", "deterministic", "ema", "fsdp2", "gpu_bf16", "gpu_fp16", "profile", "swa"),
    ]


@pytest.mark.parametrize("path", [*EXPERIMENTS, *FRAGMENTS], ids=lambda path: path.stem)
def test_header_and_shape(path):
    text = path.read_text()
    assert text.startswith("# ") and "python -m workbench" in text.split("\ntrainer:")[0]
    keys = set(yaml.safe_load(text))
    assert keys <= {"trainer", "checkpoint"} | (set() if path in FRAGMENTS else {"experiment", "model", "data"})
    if path in FRAGMENTS and path.stem != "default":
        assert "callbacks" not in yaml.safe_load(text)["trainer"], "it would replace the experiment's"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_read_as_written(path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(path), "--print_config"])
    assert left.value.code == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(path.read_text())
    assert whole["experiment"] == path.stem
    assert whole["model"]["init_args"]["architecture"] == written["model"]["init_args"]["architecture"]
    assert whole["data"]["init_args"]["batch_size"] == written["data"]["init_args"]["batch_size"]
    names = [callback["class_path"].rsplit(".", 1)[-1] for callback in whole["trainer"]["callbacks"]]
    assert "TrainingSpeedMonitor" in names, "the base layer's list is kept"


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_fragment_lies_over_an_experiment(path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", QUICK, "--config", str(path), "--print_config"])
    assert left.value.code == 0
    whole = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for key, value in yaml.safe_load(path.read_text())["trainer"].items():
        if key == "callbacks+":
            added = [_class_and_name(callback) for callback in value]
            assert [_class_and_name(callback) for callback in whole["callbacks"][-len(added) :]] == added
        elif key not in ("callbacks", "strategy", "profiler"):
            assert whole[key] == value


def _class_and_name(callback):
    return callback["class_path"].rsplit(".", 1)[-1], callback["init_args"].get("name")


@pytest.mark.slow
@pytest.mark.parametrize("configs, names", [((QUICK, CANARY), {"digits", "openmoji"}), ((FT,), {"digits", "target"})])
def test_what_the_weights_knew_is_watched(configs, names, tmp_path):
    options = [option for config in configs for option in ("--config", config)]
    small = [*TINY[: TINY.index("--trainer.callbacks")], "--trainer.accelerator", "cpu"]
    if FT in configs:
        small += ["--model.init_args.architecture", "tiny-rn", "--model.init_args.weights", "null"]
    assert main(["fit", *options, *small]) == 0
    folder = tmp_path / "runs" / Path(configs[0]).stem / "0"
    watched = json.loads((folder / "summary.json").read_text())["watched"]
    assert names <= set(watched)
    assert all(row["step"] == 2 and row["start_step"] == 0 for row in watched.values())


@pytest.mark.parametrize("name", ["cpu", "deterministic", "profile"])
def test_fragment_runs(name, tmp_path):
    fragment = str(ROOT / "lightning_configs" / f"{name}.yaml")
    assert main(["fit", "--config", QUICK, "--config", fragment, *TINY, "--trainer.accelerator", "cpu"]) == 0
    folder = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 2)
    if name == "profile":
        assert "run_training_batch" in (folder / "fit-profile.txt").read_text()


def class_folders(root, classes=4, pictures=22):
    """Write pictures of classes, as the headers advise in place of a data set that is fetched; return the options."""
    for number in range(classes * pictures):
        folder = root / f"class_{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * (number % classes), 2 * number, 0)).save(folder / f"{number}.png")
    return ["--data.dataset", "null", "--data.root", str(root)]


RUN_ELSEWHERE = ("quickstart", "ft_tip_adapter", "probe_rn50")
"""Two take one step and need their validation, see tests/tasks/test_tip_adapter.py and test_linear_probe_task.py."""


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.stem not in RUN_ELSEWHERE], ids=lambda path: path.stem)
def test_experiment_runs_on_a_small_model(path, tmp_path):
    """The headers' own advice for trying them out, with a small model in place of the large one."""
    small = "tiny-rn" if "rn50" in path.stem else "tiny-vit"
    options = [*("--model.init_args.weights", "null", "--model.init_args.warmup", "0.1")]
    if "dataset" in yaml.safe_load(path.read_text())["data"]["init_args"]:
        options += class_folders(tmp_path / "classes")
    if path.stem == "ft_distill":
        options += ["--model.init_args.distillation", "null"]
    tiny = [small if option == "tiny-vit" else option for option in TINY]
    assert main(["fit", "--config", str(path), *options, *tiny, "--trainer.accelerator", "cpu"]) == 0
    summary = json.loads((tmp_path / "runs" / path.stem / "0" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 2)
