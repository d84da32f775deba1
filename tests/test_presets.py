"""Settings that are known to work: the table, what a run is told that has others, and what is told nothing."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD, AdamW

from workbench import presets
from workbench.export import safetensors
from workbench.main import main
from workbench.models import OPENAI_ARCHITECTURES, create_model
from workbench.models.lora import LoRA, add_lora
from workbench.optimization import ParameterRule, parameter_groups

ROOT = Path(__file__).parent.parent
FT_VIT = str(ROOT / "experiments" / "ft_vit_b32.yaml")
METHODS = {"ft_classifier": "classifier", "ft_coop": "CoOp", "ft_flyp": "FLYP", "ft_lit": "LiT", "ft_lora": "LoRA"}
METHODS |= {"ft_lp_ft": "LP-FT", "ft_tip_adapter": "Tip-Adapter-F", "quickstart": "pre-training"}
METHODS |= {"pretrain_rn50": "pre-training", "pretrain_vit_b32": "pre-training"}


def optimizer(lr, kind=AdamW, rules=(), weight_decay=0.1, module=None, layer_decay=1.0):
    """Build an optimizer as `TrainingTask` does."""
    module = create_model("tiny-vit") if module is None else module
    groups = parameter_groups(module, weight_decay, rules, layer_decay)
    for group in groups:
        group["lr"] = lr * group["lr_multiplier"]
    return kind(groups, lr=lr)


def concerns(*of, method="contrastive", warmup=10, steps=100, from_weights=True, **more):
    return presets.concerns(presets.preset(method), optimizer(*of, **more), warmup, steps, from_weights)


def test_rates_are_in_order():
    for row in presets.PRESETS:
        if row.rates is not None:
            assert row.rates.lowest <= row.rates.usual <= row.rates.highest, row
        assert 0 <= row.warmup < 0.5 and 0 <= row.weight_decay < 1 and row.source
        assert set(row.models) <= set(OPENAI_ARCHITECTURES)


def test_pre_training_is_as_the_paper_has_it():
    """Tables 19 and 20; the one at 336 px is of its last epoch, which goes on from ViT-L/14."""
    paper = dict.fromkeys(OPENAI_ARCHITECTURES, 5e-4) | {"RN50x16": 4e-4, "ViT-L/14": 4e-4, "RN50x64": 3.6e-4}
    del paper["ViT-L/14@336px"]
    assert {name: presets.preset("pre-training", name).rates.usual for name in paper} == paper
    assert presets.preset("contrastive").rates.lowest <= 2e-5 <= presets.preset("contrastive").rates.highest


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_experiments_keep_to_it(path):
    task = yaml.safe_load(path.read_text())["model"]["init_args"]
    row = presets.preset(METHODS.get(path.stem, "contrastive"), task.get("architecture"))
    if row.rates is not None and "optimizer" in task:
        assert row.rates.lowest <= task["optimizer"]["init_args"]["lr"] <= row.rates.highest


def test_the_usual_is_told_nothing():
    assert concerns(1e-5) == concerns(3e-5) == concerns(1e-7) == []


def test_pre_trainings_rate_is_told():
    [said] = concerns(1e-3)
    assert "1e-3 is 100 times the usual one of contrastive from weights, and the run may forget" in said
    assert "1e-7 to 3e-5; begin with 1e-5 (--model.init_args.optimizer.init_args.lr 1e-5)" in said and "FLYP" in said
    assert concerns(1e-3, from_weights=False) == []
    [said] = concerns(1e-9)
    assert "1e-9 is 1/10,000 of the usual one" in said and "will hardly learn" in said


def test_multipliers_count():
    """The highest rate of what moves is judged, and the rate to set instead is that of the optimizer."""
    [said] = concerns(1e-5, rules=[ParameterRule(r"visual\.", lr=10)])
    assert "1e-4 is 10 times" in said and "lr 1e-6)" in said
    assert concerns(1e-3, rules=[ParameterRule("", lr=0.01)]) == []
    assert len(concerns(1e-4, layer_decay=0.65)) == 1


def test_what_may_learn_faster_is_not_judged():
    head = nn.ModuleDict({"visual": create_model("tiny-vit").visual, "head": nn.Linear(32, 3)})
    faster = [ParameterRule(r"head\.", lr=100), ParameterRule(r"visual\..*(bias|ln_.*)$", lr=50)]
    assert concerns(1e-5, module=head, rules=faster, method="classifier") == []
    assert concerns(1e-5, rules=[ParameterRule("logit_scale", lr=100)]) == []
    # Gains and biases alone.
    assert concerns(1e-3, rules=[ParameterRule(r".*bias$", lr=1), ParameterRule(".*", lr=0)]) == []
    adapted = create_model("tiny-vit")
    add_lora(adapted, LoRA())
    plus = [ParameterRule(r".*\.lora\..*B$", lr=16)]
    assert concerns(2e-4, module=adapted, rules=plus, method="LoRA") == []
    assert len(concerns(2e-2, module=adapted, rules=plus, method="LoRA")) == 1


def test_another_kind_of_optimizer_is_not_judged():
    assert concerns(1e-1, kind=SGD) == []
    assert concerns(2e-3, kind=SGD, method="CoOp") == concerns(1.0, method="CoOp") == []
    assert len(concerns(1.0, kind=SGD, method="CoOp")) == 1


def test_warm_up_and_decay():
    [said] = concerns(1e-5, warmup=50)
    assert "warm-up of 50 steps is half of the run's 100 or more" in said and "(--model.init_args.warmup 0.1)" in said
    assert concerns(1e-5, warmup=49) == []
    [said] = concerns(1e-5, warmup=0)
    assert "no warm-up" in said
    assert concerns(1e-5, warmup=0, steps=20) == concerns(2e-4, warmup=0, method="LoRA") == []
    [said] = concerns(1e-5, weight_decay=10.0)
    assert "weight decay is 10, above 1; usual for contrastive is 0.05" in said
    assert concerns(1e-5, weight_decay=1.0) == []
    assert len(concerns(1e-2, warmup=50, weight_decay=10.0)) == 3


# A run


def weights():
    torch.manual_seed(0)
    Path("base").mkdir()
    safetensors.write(create_model("tiny-vit"), Path("base"), {})
    return "base/model.safetensors"


def warned(capsys, *more, start):
    few = ["--model.init_args.architecture", "tiny-vit", "--data.batch_size", "16", "--data.num_workers", "0"]
    few += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "-1", "--trainer.max_steps", "2"]
    few += ["--trainer.limit_val_batches", "0", "--trainer.callbacks", "[]", "--model.init_args.weights", start]
    assert main(["fit", "--config", FT_VIT, *few, *more]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ") and "usual" in line]


@pytest.mark.slow
def test_a_run_says_it_once_and_its_advice_is_taken(capsys):
    high = ["--model.init_args.optimizer.init_args.lr", "1e-3"]
    start = weights()
    [said] = warned(capsys, *high, start=start)
    assert said.startswith("warning: The learning rate 1e-3 is 100 times the usual one of contrastive")
    [option] = re.findall(r"\((--\S+ \S+)\)", said)
    assert warned(capsys, *high, *option.split(), start=start) == []


def test_the_readme_has_the_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("<!-- presets -->") == 2
    assert readme.split("<!-- presets -->")[1].strip() == presets.table()
