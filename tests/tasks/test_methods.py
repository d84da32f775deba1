"""Which method's settings a run is compared with follows from the task and its settings."""

import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.optim import SGD, AdamW

from workbench.errors import Notice
from workbench.export import safetensors
from workbench.models import create_model
from workbench.models.lora import LoRA
from workbench.optimization import ParameterRule
from workbench.tasks import ClassificationTask, ContrastiveTask, CoOpTask, TipAdapterTask

LOCKED = [ParameterRule(r"visual\.", lr=0.0)]
METHODS = {
    "FLYP": (ContrastiveTask, {}),
    "LiT": (ContrastiveTask, {"parameter_rules": LOCKED}),
    "LoRA": (ContrastiveTask, {"lora": LoRA()}),
    "classifier": (ClassificationTask, {}),
    "LP-FT": (ClassificationTask, {"head_init": "probe", "probe_strength": 1.0}),
    "CoOp": (CoOpTask, {"optimizer": lambda p: SGD(p, lr=0.5), "context_tokens": 2}),
    "Tip-Adapter-F": (TipAdapterTask, {"finetune": True, "views": 0}),
}


def notices(task, trainer, data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(task, datamodule=data)
    return [str(each.message) for each in caught if each.category is Notice and "usual" in str(each.message)]


@pytest.mark.parametrize("method", METHODS)
def test_method(method, classes, data_of, trainer_of):
    kind, options = METHODS[method]
    L.seed_everything(0, verbose=False)
    Path("base").mkdir()
    torch.manual_seed(0)
    safetensors.write(create_model("tiny-vit"), Path("base"), {})
    options = {"optimizer": lambda p: AdamW(p, lr=0.5), "warmup": 0} | options
    task = kind(architecture="tiny-vit", weights="base/model.safetensors", **options)
    [said] = notices(task, trainer_of(max_steps=1, limit_val_batches=1), data_of(classes))
    assert f"the usual one of {method} from weights" in said


def test_from_scratch_there_is_nothing_to_forget(classes, data_of, trainer_of):
    task = ContrastiveTask(architecture="tiny-vit", optimizer=lambda p: AdamW(p, lr=0.5), warmup=0)
    assert notices(task, trainer_of(max_steps=1, limit_val_batches=0), data_of(classes)) == []
