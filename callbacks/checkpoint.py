"""Checkpoints: the latest and the best, whole or not there.

Our own, since Lightning's `ModelCheckpoint(save_last=True)` writes a copy of the best since 2.6 (Lightning #21481),
and its files are not replaced atomically.
"""

import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import save as torch_save

from callbacks.nan_guard import first_bad_parameter, not_finite
from callbacks.run_folder import run_folder
from workbench.atomic import written_atomically
from workbench.errors import UserError
from workbench.weights.files import read_checkpoint

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(
                f"The checkpoint {path} could not be written ({reason}): the disk is full or the folder not writable; "
                f"{_free(Path(path).parent)} free there. The checkpoint of before is untouched; make room and resume "
                "from it with --ckpt_path."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without running anything in it, whatever `weights_only` says."""
        return read_checkpoint(Path(path))


class RunCheckpoint(LightningCheckpoint):
    """Keep `checkpoints/last.ckpt`, always the latest, and `checkpoints/best.ckpt` of a metric.

    The latest is written every n steps or minutes, at the end, and when the run is interrupted: Ctrl-C and SIGTERM
    stop after the step, with several processes after the next logged one. A run resumed from it repeats what the run
    would have done, to the last bit on a CPU. Weights that are not finite are never written.

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
        self._handlers: dict[int, Any] = {}
        self._in_step = True  # until the first has ended there is nothing to write
        self._written_at_step, self._written_at = 0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what decides about the next best."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = state_dict["best"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from an average of weights with the optimizer's state of others.

        Raises:
            UserError: the checkpoint has an average, and this run makes none.
        """
        averaged = checkpoint.get("averaging", {}).get("count")
        if trainer.state.fn == "fit" and averaged and not any(hasattr(each, "begins") for each in trainer.callbacks):
            raise UserError(
                "--ckpt_path has an average of weights and this run makes none: resume with the config.yaml of its own "
                "run folder, or start from the average with --model.init_args.weights."
            )

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        """Return where the checkpoints of a run are."""
        return (run_folder(trainer) or Path(trainer.default_root_dir)) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a step, rather than in it, when asked to."""
        self._written_at_step, self._written_at = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._handlers = {number: signal.signal(number, self._interrupt) for number in _SIGNALS}

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted is not None:  # asked twice
            raise KeyboardInterrupt
        self.interrupted = signal.Signals(number).name
        rank_zero_info(f"{self.interrupted}: stopping after this step; once more stops at once.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when it is time."""
        self._in_step = False
        if self._all_stop(trainer):
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

    def _all_stop(self, trainer: Trainer) -> bool:
        """Tell whether any process was asked to stop, the same on all of them."""
        if trainer.world_size == 1:
            return self.interrupted is not None
        if not trainer._logger_connector.should_update_logs:  # asking makes a GPU wait
            return False
        stop = trainer.strategy.reduce_boolean_decision(self.interrupted is not None, all=False)
        if stop and self.interrupted is None:
            self.interrupted = "another process was interrupted"
        return stop

    def outdate(self) -> None:
        """Have the latest written again, with the next step or at the end: the weights were changed without a step."""
        self._written_at_step = -1

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
            self._write(trainer, "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the latest, and leave signals as they were."""
        if trainer.global_step > self._written_at_step:
            self._write_last(trainer)
        self._restore_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the latest if no step is half done: a picture that cannot be read must not cost hours of training.

        One process alone cannot write for all, so with several the last written one stays.
        """
        self._restore_signals()
        if trainer.world_size == 1 and not self._in_step and trainer.global_step > self._written_at_step:
            with suppress(UserError):  # the first error is the one to show
                self._write_last(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that the state is changing."""
        self._in_step = True

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _write_last(self, trainer: Trainer) -> None:
        self._write(trainer, "last.ckpt")
        self._written_at_step, self._written_at = trainer.global_step, time.monotonic()

    def _write(self, trainer: Trainer, name: str) -> None:
        """Write on all processes, which each hold a share of a sharded model, unless the weights are spoilt."""
        bad = first_bad_parameter(trainer.lightning_module) is not None
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            raise not_finite(f"The weights are not finite at step {trainer.global_step}", trainer.lightning_module)
        trainer.save_checkpoint(self.folder(trainer) / name, weights_only=False)  # whole: the optimizer's state too


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB"
    except OSError:
        return "unknown space"
