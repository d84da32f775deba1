"""What every task that trains by gradient descent shares: optimizer, parameter groups, warm-up and schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workbench import presets
from workbench.errors import Notice, UserError
from workbench.optimization import (
    ParameterRule,
    group_table,
    parameter_groups,
    schedule,
    use_fused,
    warmup_steps,
)
from workbench.tasks.base import Task

OptimizerFactory = Callable[[Iterable], Optimizer]


class TrainingTask(Task):
    """A task with optimizer steps; subclasses say what the loss is.

    Args:
        optimizer: null for `default_optimizer`: AdamW with the paper's values, lr 5e-4, betas 0.9 / 0.98, eps 1e-6,
            weight decay 0.2 (tables 18 and 19, ViT). Adam's fused kernels are used where the device has them.
        warmup: linear warm-up, in steps (an int) or as a fraction of the run (a float below 1).
        schedule: what follows the warm-up, per step: `cosine`, `linear` or `constant`.
        parameter_rules: ordered table of patterns for freezing, learning rates and weight decay, see
            `workbench.optimization.ParameterRule`. The temperature's own learning rate is a row:
            `{match: logit_scale, lr: 0.1}`.
        layer_decay: each layer's learning rate is so much of the next one's, from the output of each tower down to its
            input; 1 for all the same. Times what the rules say.
        model: see `Task`.
    """

    method: str | None = None
    """Which of `workbench.presets` a run from weights is compared with; None for none."""

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory | None = None,  # a lambda could not be written to config.yaml
        warmup: int | float = 0.1,
        schedule: str = "cosine",
        parameter_rules: list[ParameterRule] | None = None,
        layer_decay: float = 1.0,
        **model: Any,
    ):
        super().__init__(**model)
        self.optimizer_factory = optimizer or self.default_optimizer
        self.parameter_rules = parameter_rules or []
        self.total_steps: int | None = None

    @staticmethod
    def default_optimizer(parameters: Iterable) -> Optimizer:
        """Return what trains where the configuration names no optimizer."""
        return AdamW(parameters, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)

    def trained_module(self) -> nn.Module:
        """Return what the optimizer's groups are taken from, by the names of its parameters."""
        return self.clip

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer over the rules' groups, and the per-step schedule; say once what trains how."""
        self.total_steps = total_optimizer_steps(self.trainer)
        warmup = warmup_steps(self.hparams.warmup, self.total_steps)
        try:
            probe = self.optimizer_factory([nn.Parameter(torch.zeros(1))]).defaults
        except (ValueError, TypeError) as error:
            raise UserError(f"The optimizer refuses its settings: {error}.") from error
        module = self.trained_module()
        groups = parameter_groups(
            module, probe.get("weight_decay", 0.0), self.parameter_rules, self.hparams.layer_decay
        )
        for group in groups:
            group["lr"] = probe["lr"] * group["lr_multiplier"]
        table = group_table(module, groups)
        rank_zero_info(f"{self.total_steps} optimizer steps, {warmup} of them warm-up. What is trained:\n{table}")
        optimizer = self.optimizer_factory(groups)
        self._compare_with_presets(optimizer, warmup)
        use_fused(optimizer)
        scheduler = LambdaLR(optimizer, schedule(self.hparams.schedule, warmup, self.total_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/learning_rate"},
        }

    def _compare_with_presets(self, optimizer: Optimizer, warmup: int) -> None:
        from_weights = self.hparams.weights is not None
        method = "pre-training" if not from_weights else "LoRA" if self.lora is not None else self.method
        if method is not None:
            row = presets.preset(method, self.clip.architecture.name)
            found = presets.concerns(row, optimizer, warmup, self.total_steps, from_weights)
            if found:
                rank_zero_warn(" ".join(found), category=Notice)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the length of the schedule to what every task's checkpoint says."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["workbench"]["total_steps"] = self.total_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the model as every task does; say so when the schedule's length has changed."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.training and "optimizer_states" not in checkpoint:
            raise UserError(
                "--ckpt_path holds weights alone, without the optimizer's state, so that no run can go on from it; "
                "start one with --model.init_args.weights."
            )
        before = checkpoint["workbench"].get("total_steps")
        if self.trainer.training and before is not None:
            now = total_optimizer_steps(self.trainer)
            if before != now:
                rank_zero_info(
                    f"The checkpoint's run was {before} steps long and this one is {now}: the schedule is "
                    "that of the new length, so the learning rate jumps here."
                )


def total_optimizer_steps(trainer: Any) -> int:
    """Return the optimizer steps of the whole run, from the datamodule and the Trainer's limits.

    Not `trainer.estimated_stepping_batches`: reading it builds the loaders before a checkpoint is restored
    (Lightning #20550).
    """
    batches = trainer.datamodule.batches_per_epoch
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    total = per_epoch * epochs
    if trainer.max_steps not in (None, -1):
        total = min(total, trainer.max_steps)
    if total == math.inf:
        raise UserError("The run has no end, so the schedule has none; set trainer.max_epochs or trainer.max_steps.")
    if total < 1:
        raise UserError(
            f"The run has no step: {batches} batches an epoch, max_epochs {trainer.max_epochs}, "
            f"max_steps {trainer.max_steps}."
        )
    return int(total)
