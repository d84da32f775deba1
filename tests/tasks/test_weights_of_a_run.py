"""`weights:` in a YAML: whatever they are of, the run has their activation, sizes and pictures, and says so."""

import json
import shutil
import subprocess
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import workbench
from callbacks.retrieval_monitor import RetrievalMonitor
from callbacks.zero_shot_monitor import ZeroShotMonitor
from datamodules import ClassificationDataModule
from datamodules.openmoji import OpenMojiDataModule
from workbench.errors import UserError
from workbench.main import main
from workbench.models import create_model
from workbench.tasks import ContrastiveTask
from workbench.tokenizer import content_hash
from workbench.weights import openclip, read_weights

ROOT = Path(__file__).parent.parent.parent
QUICK = str(ROOT / "experiments" / "quickstart.yaml")
FEW = [
    *("--data.batch_size", "32", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "-1", "--trainer.max_steps", "2", "--trainer.callbacks", "[]"),
    *("--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "2"),
]
LAST = "runs/quickstart/0/checkpoints/last.ckpt"


def foreign(name="tiny-vit", **changes):
    """Write weights as OpenCLIP does: exact GELU and other pictures than OpenAI's."""
    torch.manual_seed(3)
    changes = {"activation": "gelu", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)} | changes
    model = create_model(name, **changes)
    Path("theirs").mkdir()
    Path("theirs/open_clip_config.json").write_text(json.dumps(openclip.write_config(model.architecture)))
    save_file(model.state_dict(), "theirs/open_clip_model.safetensors")
    return model


def fit(*more, architecture="tiny-vit", weights="theirs"):
    of = ["--model.init_args.architecture", architecture, "--model.init_args.weights", weights]
    return main(["fit", "--config", QUICK, *FEW, *of, *more])


@pytest.mark.parametrize("architecture", ["tiny-vit", "null"])
def test_a_run_is_of_what_its_weights_are(architecture):
    source = foreign(image_size=48, interpolation="bilinear")
    assert fit("--model.init_args.optimizer.init_args.lr", "1e-12", architecture=architecture) == 0
    model, preprocess = workbench.load(LAST, device="cpu")
    assert model.architecture == source.architecture
    torch.testing.assert_close(model.text_projection, source.text_projection, rtol=0, atol=1e-6)
    about = torch.load(LAST, weights_only=True)["workbench"]
    assert about["weights_source"]["kind"] == "OpenCLIP's" and about["weights_source"]["interpolated"] == {}
    assert len(about["weights_source"]["sha256"]) == 64 and about["tokenizer"] == content_hash()
    # What the run needs, is in its checkpoint and its configuration.
    shutil.rmtree("theirs")
    assert main(["validate", "--config", "runs/quickstart/0/config.yaml", "--ckpt_path", LAST]) == 0
    more = ["--trainer.max_steps", "3"]
    assert main(["fit", "--config", "runs/quickstart/0/config.yaml", "--ckpt_path", LAST, *more]) == 0
    assert torch.load(LAST, weights_only=True)["workbench"]["weights_source"] == about["weights_source"]


def test_a_checkpoint_names_the_commit_and_holds_the_configuration():
    foreign()
    assert fit() == 0
    about = torch.load(LAST, weights_only=True)["workbench"]
    assert about["config"] == Path("runs/quickstart/0/config.yaml").read_text()
    assert yaml.safe_load(about["config"])["model"]["init_args"]["weights"] == "theirs"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert about["git"] is None or about["git"]["commit"] == commit


def refused(capsys, *words):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and not Path("runs").exists()
    for word in words:
        assert word in lines[0]


def test_another_activation_than_the_yaml_demands(capsys):
    foreign()
    assert fit("--model.init_args.activation", "quick_gelu") == 2
    refused(capsys, "trained with gelu and the model has quick_gelu")


def test_a_file_that_hides_its_activation(capsys):
    torch.save(foreign(mean=(0.48145466, 0.4578275, 0.40821073)).state_dict(), "bare.pt")
    assert fit(weights="bare.pt") == 2
    refused(capsys, "does not say which activation", "--model.init_args.activation")
    assert fit("--model.init_args.activation", "gelu", weights="bare.pt") == 0
    assert read_weights(LAST).architecture.activation == "gelu"


def test_another_image_size_or_context_is_interpolated_on_request(capsys):
    foreign()
    other = ["--model.init_args.image_size", "48", "--model.init_args.context_length", "90"]
    assert fit(*other) == 2
    refused(capsys, "another image size or context length", "--model.init_args.interpolate_positions true")
    assert fit(*other, "--model.init_args.interpolate_positions", "true") == 0
    found = read_weights(LAST)
    assert (found.architecture.image_size, found.architecture.context_length) == (48, 90)
    about = torch.load(LAST, weights_only=True)["workbench"]
    interpolated = about["weights_source"]["interpolated"]
    assert interpolated == {"visual.positional_embedding": [4, 6], "positional_embedding": [77, 90]}


def test_a_checkpoint_of_something_else_is_no_run(capsys):
    torch.save(foreign().state_dict(), "bare.pt")
    for path in ("bare.pt", "theirs/open_clip_model.safetensors"):
        of = ["--model.init_args.architecture", "tiny-vit"]
        assert main(["validate", "--config", QUICK, *FEW[2:6], *of, "--ckpt_path", path]) == 2
        refused(capsys, "checkpoint")


def test_other_towers(capsys):
    foreign()
    assert fit(architecture="tiny-rn") == 2
    refused(capsys, "are not those of tiny-rn", "missing", "unexpected")


def test_half_weights_train_in_fp32():
    source = foreign(activation="quick_gelu", mean=(0.48145466, 0.4578275, 0.40821073))
    half = {key: value.half() for key, value in source.state_dict().items()}
    numbers = {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    torch.save(half | numbers, "openai.pt")
    assert fit(weights="openai.pt") == 0
    assert {value.dtype for value in read_weights(LAST).state_dict.values()} == {torch.float32}
    about = torch.load(LAST, weights_only=True)["workbench"]
    assert about["weights_source"]["kind"] == "OpenAI's" and about["activation"] == "quick_gelu"


@pytest.mark.parametrize("setting, value", [("interpolation", "bilinear"), ("image_size", 64), ("context_length", 20)])
def test_in_python_data_of_another_model_are_refused(setting, value):
    task = ContrastiveTask(architecture="tiny-vit", warmup=0)
    data = OpenMojiDataModule(batch_size=16, image_size=32, num_workers=0)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    setattr(data, setting, value)
    with pytest.raises(UserError, match=f"data's {setting} is {value}.*data.follow"):
        L.Trainer(max_steps=1, limit_val_batches=0, **options).fit(task, datamodule=data)
    again = OpenMojiDataModule(batch_size=16, num_workers=0)
    again.follow(task.described())
    L.Trainer(max_steps=1, limit_val_batches=0, **options).fit(
        ContrastiveTask(architecture="tiny-vit", warmup=0), datamodule=again
    )


@pytest.mark.parametrize("monitor", [ZeroShotMonitor, RetrievalMonitor])
def test_data_of_monitors_are_prepared_as_the_runs(tmp_path, monitor):
    for color in ("red", "blue"):
        (tmp_path / "colours" / color).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), color).save(tmp_path / "colours" / color / f"{number}.png")
    own = ClassificationDataModule(str(tmp_path / "colours"), num_workers=0)
    foreign(image_size=48, interpolation="bilinear")
    task = ContrastiveTask(
        architecture="tiny-vit", weights="theirs", context_length=20, interpolate_positions=True, warmup=0
    )
    data = ClassificationDataModule(str(tmp_path / "colours"), batch_size=2, num_workers=0)
    data.follow(task.described())
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=1, callbacks=[monitor(data=own, name="own")], **options).fit(task, datamodule=data)
    for prepared in (data, own):
        assert (prepared.image_size, prepared.interpolation, prepared.context_length) == (48, "bilinear", 20)
        assert prepared.datasets["train"].context_length == 20
        assert prepared.datasets["train"][0]["image"].shape == (3, 48, 48)
