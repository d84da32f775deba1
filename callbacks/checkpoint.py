"""Checkpoints: the latest and the best, whole or not there.

Our own, since Lightning's `ModelCheckpoint(save_last=True)` writes a copy of the best since 2.6 (Lightning #21481),
and its files are not replaced atomically.
"""

import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import save as torch_save

from workbench.atomic import written_atomically
from workbench.errors import UserError
from workbench.weights.files import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the old file and put the new one in its place; load tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full or the folder not writable; the file of before is untouched.
        """
        try:
            with written_atomically(path) as file:
                torch_save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a full disk into a RuntimeError of its own.
            raise UserError(
                f"The checkpoint {path} could not be written ({error}): the disk is full or the folder not writable. "
                "The checkpoint of before is untouched; make room and resume from it with --ckpt_path."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without running anything in it, whatever `weights_only` says."""
        return read_checkpoint(Path(path))


class RunCheckpoint(LightningCheckpoint):
    """Keep `checkpoints/last.ckpt`, always the latest, and `checkpoints/best.ckpt` of a metric.

    The latest is written every n steps or minutes, at the end, and when the run is interrupted (Ctrl-C and SIGTERM
    stop after the step). A run resumed from it repeats what the run would have done, to the last bit on a CPU.

    Args:
        every_n_steps: optimizer steps between writes; null only by minutes.
        every_n_minutes: minutes between writes; null only by steps.
        monitor: metric of `best.ckpt`, such as `val/image_to_text_recall@5`; null keeps no best.
        mode: `max` or `min`, what is better.
    """

    def __init__(
        self,
        every_n_steps: int | None = 500,
        every_n_minutes: float | None = 15.0,
        monitor: str | None = None,
        mode: str = "max",
    ):
        if mode not in ("max", "min"):
            raise UserError(f"checkpoint.mode is {mode!r}; it is max or min.")
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None
        self.interrupted: str | None = None
        self._written_at_step, self._written_at = 0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what decides about the next best."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = state_dict["best"]

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        """Return where the checkpoints of a run are."""
        return Path(trainer.log_dir) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a step, rather than in it, when asked to."""
        self._written_at_step, self._written_at = trainer.global_step, time.monotonic()
        self._handlers = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted is not None:  # asked twice
            raise KeyboardInterrupt
        self.interrupted = signal.Signals(number).name
        rank_zero_info(f"{self.interrupted}: stopping after this step; once more stops at once.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when it is time."""
        if self.interrupted is not None:
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step  # min_epochs must not hold it
            self._write_last(trainer)
            return
        steps = trainer.global_step - self._written_at_step
        if steps == 0:  # inside an accumulation
            return
        due = self.every_n_steps is not None and steps >= self.every_n_steps
        if self.every_n_minutes is not None:
            late = time.monotonic() - self._written_at >= 60 * self.every_n_minutes
            due = due or trainer.strategy.reduce_boolean_decision(late, all=False)
        if due:
            self._write_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise UserError(
                f"checkpoint.monitor is {self.monitor!r}, which this run does not measure; it measures "
                f"{', '.join(sorted(trainer.callback_metrics))}."
            )
        value = float(trainer.callback_metrics[self.monitor])
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best = value
            trainer.save_checkpoint(self.folder(trainer) / "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the latest, and leave signals as they were."""
        if trainer.global_step > self._written_at_step and self.interrupted is None:
            self._write_last(trainer)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _write_last(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder(trainer) / "last.ckpt")
        self._written_at_step, self._written_at = trainer.global_step, time.monotonic()
