"""What tells, while it trains, whether a run goes well: speed, gradients, chance level, temperature."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from workbench.distributed import world_size


class TrainingSpeedMonitor(Callback):
    """Log `train/pairs_per_second` over all processes and `train/data_wait_share`, the share of time without a batch.

    Averages since the last logged step, by the clock of the process: on a GPU single steps are not timed, which
    would make it wait.
    """

    def __init__(self) -> None:
        self._reset()
        self._batch_ended: float | None = None

    def _reset(self) -> None:
        self._since, self._waited, self._pairs = time.perf_counter(), 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew, leaving out what lies between epochs."""
        self._reset()
        self._batch_ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew after a validation."""
        self._reset()
        self._batch_ended = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch ended as waiting."""
        if self._batch_ended is not None:
            self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Log on the steps that the Trainer logs."""
        self._pairs += len(batch["image"]) * world_size()
        now = time.perf_counter()
        if trainer._logger_connector.should_update_logs:
            elapsed = now - self._since
            pl_module.log("train/pairs_per_second", self._pairs / elapsed)
            pl_module.log("train/data_wait_share", min(1.0, self._waited / elapsed))
            self._reset()
        self._batch_ended = time.perf_counter()


class GradientNormMonitor(Callback):
    """Log `train/gradient_norm/image`, `/text` and `/logit_scale` before clipping, on logged steps only."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Norm of each tower's gradient, in one fused call; under fp16 it has been unscaled by then."""
        if not trainer._logger_connector.should_update_logs:
            return
        towers: dict[str, list[Tensor]] = {"image": [], "text": [], "logit_scale": []}
        for name, parameter in pl_module.clip.named_parameters():
            if parameter.grad is not None:
                tower = "image" if name.startswith("visual.") else name if name == "logit_scale" else "text"
                towers[tower].append(parameter.grad)
        for tower, gradients in towers.items():
            if gradients:
                norm = torch.stack(torch._foreach_norm(gradients)).norm()
                pl_module.log(f"train/gradient_norm/{tower}", norm)


class ChanceLevelMonitor(Callback):
    """Say once, and what to change, when the loss stays at chance: ln N, the level of features that tell nothing apart.

    Args:
        patience: logged steps in a row.
        tolerance: distance from chance, in nats, that counts as staying there.
    """

    def __init__(self, patience: int = 20, tolerance: float = 0.05):
        self.patience, self.tolerance = patience, tolerance
        self._steps, self._said = 0, False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at the logged loss; a look at every step would make a GPU wait."""
        if self._said or not trainer._logger_connector.should_update_logs:
            return
        metrics = trainer.callback_metrics
        if "train/loss" not in metrics:
            return
        loss, chance = float(metrics["train/loss"]), float(metrics["train/loss_chance"])
        self._steps = self._steps + 1 if abs(loss - chance) < self.tolerance else 0
        if self._steps >= self.patience:
            self._said = True
            rank_zero_warn(
                f"The loss has stayed at its chance level, {chance:.2f}, for "
                f"{self._steps} logged steps (now step {trainer.global_step}, loss {loss:.2f}): the model tells no "
                "pair from another. Most often the learning rate is too high (try a tenth) or still in a long warm-up; "
                "else look at the data: captions that do not belong to their pictures, or all alike."
            )


class TemperatureMonitor(Callback):
    """Say once what an unusual temperature means; its path is logged as `train/temperature`.

    Args:
        patience: logged steps in a row before a word is said.
    """

    def __init__(self, patience: int = 50):
        self.patience = patience
        self._at_clamp, self._falling, self._start, self._said = 0, 0, None, False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at the logged logit scale."""
        metrics = trainer.callback_metrics
        if self._said or not trainer._logger_connector.should_update_logs or "train/logit_scale" not in metrics:
            return
        scale, maximum = float(metrics["train/logit_scale"]), pl_module.hparams.logit_scale_max
        self._start = scale if self._start is None else self._start
        self._at_clamp = self._at_clamp + 1 if scale > 0.999 * maximum and self._start < 0.99 * maximum else 0
        self._falling = self._falling + 1 if scale < 0.3 * self._start else 0
        if self._at_clamp >= self.patience:
            self._said = True
            rank_zero_warn(
                f"The logit scale has reached its clamp of {maximum:g} and stays there. For long pre-training that is "
                "usual; on a small data set it means that the training pairs are known by heart: compare val/loss."
            )
        elif self._falling >= self.patience:
            self._said = True
            rank_zero_warn(
                f"The logit scale fell from {self._start:.1f} to {scale:.1f}: the model is less sure of its pairs. "
                "With weights that were trained before, the learning rate is too high or the captions are much noisier "
                "than theirs; lower the rate, or hold the scale with --model.init_args.freeze_temperature true."
            )
