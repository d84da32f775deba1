"""A run with `lora:`: what it trains, what its checkpoints hold, and that they find their base again or say why not."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import workbench
from workbench.errors import UserError
from workbench.export import safetensors
from workbench.main import main
from workbench.models import create_model
from workbench.models.lora import MARK, LoRA, add_lora, merge_lora
from workbench.tokenizer import tokenize
from workbench.weights import description, read_weights

ROOT = Path(__file__).parent.parent.parent
EXPERIMENT = str(ROOT / "experiments" / "ft_lora.yaml")
BASE = "base/model.safetensors"
LAST = "runs/ft_lora/0/checkpoints/last.ckpt"
CONFIG = "runs/ft_lora/0/config.yaml"
FEW = [
    *("--data.batch_size", "16", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
    *("--trainer.callbacks", "[]", "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"),
]


def base(folder="base", architecture="tiny-vit", seed=3, logit_scale=4.60546875, **changes):
    torch.manual_seed(seed)
    model = create_model(architecture, **changes)
    with torch.no_grad():
        model.logit_scale.fill_(logit_scale)  # OpenAI's, as stored in fp16: a hair above ln 100
    Path(folder).mkdir()
    safetensors.write(model, Path(folder), {})
    return model


def fit(*more, steps=3, weights=BASE, architecture="tiny-vit", rank=2):
    of = ["--model.init_args.architecture", architecture, "--model.init_args.weights", weights]
    schedule = ["--model.init_args.schedule", "constant", "--model.init_args.warmup", "0"]
    lora = ["--model.init_args.lora.rank", str(rank)]
    return main(["fit", "--config", EXPERIMENT, *FEW, *of, *schedule, *lora, "--trainer.max_steps", str(steps), *more])


def again(verb, *more, config=CONFIG, checkpoint=LAST):
    return main([verb, "--config", config, "--ckpt_path", checkpoint, *more])


def stored(path=LAST):
    return torch.load(path, weights_only=True)


def refused(capsys, *words):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], lines[0]


def features(model):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokenize(["a dog", "", "two red balloons"]))


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
def test_only_the_adapter_trains_and_only_that_is_saved(architecture):
    started = base(architecture=architecture)
    assert fit(architecture=architecture) == 0
    checkpoint, plain = stored(), started.state_dict()
    about, state = checkpoint["workbench"], checkpoint["state_dict"]
    adapter = {key for key in state if MARK in key}
    buffers = {f"clip.{name}" for name, _ in started.named_buffers()}
    assert set(state) - adapter == {"clip.logit_scale", *buffers}
    assert Path(LAST).stat().st_size < 0.1 * Path(BASE).stat().st_size
    assert len(about["base_sha256"]) == 64 and about["lora"]["rank"] == 2 and about["lora"]["alpha"] == 16
    # Everything else has no optimizer state, and the values that it had, to the last bit.
    [group] = checkpoint["optimizer_states"][0]["param_groups"]
    assert set(group["names"]) == {key.removeprefix("clip.") for key in adapter}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(adapter)
    assert all(torch.equal(state[f"clip.{key}"], plain[key]) for key in ("logit_scale", *dict(started.named_buffers())))
    read = read_weights(LAST)
    assert read.architecture == started.architecture and set(read.state_dict) == set(plain)
    adapted = {key.partition(MARK)[0].removeprefix("clip.") for key in adapter}
    for key, value in plain.items():
        touched = key.endswith("weight") and key.removesuffix(".weight").removesuffix(".in_proj_weight") in adapted
        assert torch.equal(read.state_dict[key], value) is not touched, key
        assert torch.allclose(read.state_dict[key], value, atol=0.05)


def test_an_adapter_learns():
    """Sixty steps on 32 pairs, with a base that knows nothing and stays so."""
    base(logit_scale=math.log(1 / 0.07))
    few = ["--data.batch_size", "32", "--data.held_out", "1861", "--model.init_args.optimizer.init_args.lr", "0.01"]
    assert fit(*few, steps=60, rank=8) == 0
    loss = json.loads(Path("runs/ft_lora/0/summary.json").read_text())["metrics"]["train/loss"]
    assert loss["value"] < 0.5 * math.log(32)


def test_loading_computes_what_the_run_computes():
    model = base()
    assert fit("--model.init_args.optimizer.init_args.lr", "0.02") == 0
    before = features(model)
    add_lora(model, LoRA(rank=2))
    model.load_state_dict(
        {key.removeprefix("clip."): value for key, value in stored()["state_dict"].items()}, strict=False
    )
    found, expected = features(workbench.load(LAST, "cpu")[0]), features(model)
    merge_lora(model)
    for mine, theirs, merged, old in zip(found, expected, features(model), before, strict=True):
        assert torch.equal(mine, merged)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert float((mine - old).abs().max()) > 0.01


def test_resuming_is_exact():
    base()
    assert fit(steps=5) == 0
    whole = stored()
    shutil.rmtree("runs")
    assert fit(steps=2) == 0
    assert stored()["global_step"] == 2
    assert again("fit", "--trainer.max_steps", "5") == 0
    resumed = stored()
    assert resumed["global_step"] == 5 and resumed["state_dict"].keys() == whole["state_dict"].keys()
    assert all(torch.equal(resumed["state_dict"][key], value) for key, value in whole["state_dict"].items())
    moments = (each["optimizer_states"][0]["state"].values() for each in (whole, resumed))
    for one, other in zip(*moments, strict=True):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])
    assert resumed["workbench"]["base_sha256"] == whole["workbench"]["base_sha256"]


@pytest.mark.slow
def test_two_processes_train_the_same_adapter():
    base()
    assert fit() == 0
    one = stored()["state_dict"]
    # In a process of its own: forks of one that has computed a gradient may not compute any.
    options = ["--config", CONFIG, "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    command = [sys.executable, "-m", "workbench", "fit", *options]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    two = stored("runs/ft_lora/1/checkpoints/last.ckpt")["state_dict"]
    assert one.keys() == two.keys()
    for key, value in one.items():  # a step of Adam is 2e-4 long, whatever the gradient
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5)


def test_validating_and_exporting(capsys):
    base()
    assert fit() == 0
    assert again("validate", "--trainer.limit_val_batches", "1") == 0
    assert "val/loss" in capsys.readouterr().out
    assert main(["export", "--checkpoint", LAST, "--to", "safetensors", "--output", "merged"]) == 0
    exported, merged = read_weights("merged/model.safetensors"), read_weights(LAST)
    assert exported.architecture == merged.architecture
    assert set(exported.state_dict) == set(merged.state_dict)
    assert all(torch.equal(exported.state_dict[key], value) for key, value in merged.state_dict.items())


def test_another_base(capsys):
    base()
    assert fit() == 0
    base("other", seed=4)
    for verb in ("fit", "validate"):
        assert again(verb, "--model.init_args.weights", "other/model.safetensors") == 2
        refused(capsys, "trained on other weights than those of weights other/model.safetensors", "sha256 was")
    assert again("fit", "--model.init_args.weights", "null") == 2
    refused(capsys, f"{LAST} holds a LoRA adapter without the weights beneath it", "config.yaml")
    # The same weights elsewhere are the same weights.
    shutil.move("base", "moved")
    assert (
        again("validate", "--model.init_args.weights", "moved/model.safetensors", "--trainer.limit_val_batches", "1")
        == 0
    )
    for place in ("merged", "runs/merged"):
        assert main(["export", "--checkpoint", LAST, "--to", "safetensors", "--output", place]) == 2
        refused(capsys, LAST, "without the weights that it was trained on, base/model.safetensors", "current folder")
        assert not Path(place).exists()
    shutil.move("other", "base")
    with pytest.raises(UserError, match=r"last\.ckpt: The LoRA adapter was trained on other weights"):
        workbench.load(LAST, "cpu")


def test_another_adapter_than_the_configured_one(capsys):
    base()
    assert fit() == 0
    assert again("fit", "--model.init_args.lora.rank", "3") == 2
    refused(capsys, "another model: lora", "'rank': 2", "'rank': 3")
    assert again("validate", "--model.init_args.lora", "null") == 2
    refused(capsys, "holds a LoRA adapter without the weights beneath it")
    # A rule that opens what the checkpoint does not have.
    rules = ["--model.init_args.parameter_rules", '[{match: "ln_final", lr: 1}]']
    assert again("fit", *rules) == 2
    refused(capsys, "trained other parameters", "clip.ln_final.bias", "parameter_rules")
    # And an adapter for a run that was without.
    shutil.rmtree("runs")
    assert fit("--model.init_args.lora", "null") == 0
    assert again("fit", "--model.init_args.lora", "{rank: 2}", "--trainer.max_steps", "4") == 2
    refused(capsys, "another model: lora None in the checkpoint")


def test_what_rules_open_is_trained_and_saved_too():
    started = base(init="pytorch")
    rules = '[{match: logit_scale, lr: 10}, {match: ".*\\\\.ln_2\\\\.", lr: 1}, {match: "visual\\\\.", lr: 0}]'
    assert fit("--model.init_args.parameter_rules", rules) == 0
    state = stored()["state_dict"]
    opened = {f"clip.{name}" for name, _ in started.named_parameters() if ".ln_2." in name} | {"clip.logit_scale"}
    assert {key for key in state if MARK not in key} == opened
    found = read_weights(LAST).state_dict
    for key, value in started.state_dict().items():
        text = key.startswith("transformer.") and key.endswith(
            ("_weight", "out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
        )
        assert torch.equal(found[key], value) is not (text or f"clip.{key}" in opened), key
    assert again("fit", "--trainer.max_steps", "4") == 0


def test_without_weights_everything_is_saved():
    assert fit(weights="null") == 0
    checkpoint = stored()
    assert checkpoint["workbench"].get("base_sha256") is None
    with torch.device("meta"):
        plain = create_model("tiny-vit").state_dict()
    assert {key.removeprefix("clip.") for key in checkpoint["state_dict"] if MARK not in key} == set(plain)
    assert set(read_weights(LAST).state_dict) == set(plain)
    assert again("fit", "--trainer.max_steps", "4") == 0
    assert again("validate", "--trainer.limit_val_batches", "1") == 0


@pytest.mark.slow
def test_an_adapter_on_merged_weights_of_another():
    base()
    assert fit() == 0
    first = read_weights(LAST).state_dict
    assert fit(weights=LAST) == 0
    second = "runs/ft_lora/1/checkpoints/last.ckpt"
    found = read_weights(second).state_dict
    assert set(found) == set(first)
    differ = {key for key, value in first.items() if not torch.equal(found[key], value)}
    assert len(differ) == 16
    shutil.rmtree("base")
    with pytest.raises(UserError, match="base/model.safetensors, which cannot be had"):
        read_weights(second)


def test_another_context_than_the_base():
    started = base()
    length = ["--model.init_args.context_length", "90", "--model.init_args.interpolate_positions", "true"]
    assert fit(*length) == 0
    model, _ = workbench.load(LAST, "cpu")
    assert model.architecture.context_length == 90 and model.positional_embedding.shape == (90, 64)
    assert torch.equal(model.positional_embedding[:20], started.positional_embedding[:20])
    assert again("validate", "--trainer.limit_val_batches", "1") == 0


def test_the_bias_of_the_sigmoid_loss_goes_with_the_adapter():
    base()
    assert fit("--model.init_args.loss", "sigmoid", steps=4) == 0
    whole = stored()["state_dict"]
    assert "clip.logit_bias" in whole
    shutil.rmtree("runs")
    assert fit("--model.init_args.loss", "sigmoid", steps=2) == 0
    assert again("fit", "--trainer.max_steps", "4") == 0
    assert all(torch.equal(stored()["state_dict"][key], value) for key, value in whole.items())
    model, _ = workbench.load(LAST, "cpu")
    assert model.architecture.logit_bias and torch.equal(model.logit_bias, whole["clip.logit_bias"])


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ("{match: [visula.proj]}", ["lora.match: 'visula.proj' matches no parameter", "visual.proj"]),
        ("{match: [visual.conv1]}", ["visual.conv1.weight, a convolution"]),
        ("{parts: qz}", ["lora.parts is 'qz'"]),
        ("{rank: 0}", ["lora.rank is 0"]),
        ("{rank: lots}", ["lots"]),
        ("{rnk: 3}", ["rnk"]),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(capsys, lora, words):
    options = ["--model.init_args.architecture", "tiny-vit", "--model.init_args.weights", "null"]
    assert main(["fit", "--config", EXPERIMENT, *FEW, *options, "--model.init_args.lora", lora]) == 2
    refused(capsys, *words)
    assert not Path("runs").exists()


def forged(path, base_path, **lora):
    model = create_model("tiny-vit")
    add_lora(model, LoRA())
    about = description(model.architecture) | {"base_sha256": "0" * 64, "weights_source": {"source": base_path}}
    about["lora"] = {"alpha": 16.0} | lora
    adapter = {f"clip.{key}": value for key, value in model.state_dict().items() if MARK in key}
    torch.save({"state_dict": adapter, "workbench": about}, path)


def test_a_file_that_nobody_wrote():
    forged("a.ckpt", "b.ckpt")
    forged("b.ckpt", "a.ckpt")
    with pytest.raises(UserError, match="adapters on top of one another"):
        workbench.load("a.ckpt", "cpu")
    for nonsense in ({"alpha": "x"}, {"alpha": float("nan")}, {"alpha": None}):
        forged("c.ckpt", "a.ckpt", **nonsense)
        with pytest.raises(UserError, match=r"c\.ckpt: what it says of its LoRA adapter makes no sense"):
            workbench.load("c.ckpt", "cpu")
    base("small", vocab_size=100)
    forged("d.ckpt", "small/model.safetensors")
    with pytest.raises(UserError, match=r"small.*not those of tiny-vit: 1 of another shape \(token_embedding"):
        workbench.load("d.ckpt", "cpu")


def test_the_experiment_says_how_it_was_run():
    text = Path(EXPERIMENT).read_text()
    assert "2,211,840 of 153,489,153" in text
    assert yaml.safe_load(text)["model"]["init_args"]["lora"] == {"rank": 8, "alpha": 16}
