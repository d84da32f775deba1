"""What a run is fed: samples that could not be read, samples of each source, pairs that are false negatives."""

import csv
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.run_folder import run_folder
from workbench.atomic import written_atomically
from workbench.distributed import gather_objects, is_distributed

_COUNTED = 20
"""Sources up to which each has a curve; the classes of balanced data are more."""


class SkippedSamples(Callback):
    """List the samples that were skipped in the run folder's `skipped.csv`, and stop the run when there are too many.

    Logs `train/skipped_samples`, the number of different ones so far, on logged steps; there all processes learn of
    each other's, so that they stop together.
    """

    def __init__(self) -> None:
        self._written = 0
        self._before: list[tuple[str, int, str, str]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what was skipped so far."""
        return {"skipped": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._before = [tuple(each) for each in state_dict["skipped"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the data what was skipped before the run was resumed."""
        self._learn(trainer, self._before)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look on logged steps."""
        if trainer._logger_connector.should_update_logs:
            self._settle(trainer)
            pl_module.log("train/skipped_samples", float(len(trainer.datamodule.skipped)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look after each validation."""
        self._settle(trainer)

    on_test_epoch_end = on_train_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down what is known; other processes may be gone."""
        self._write(trainer)

    def _settle(self, trainer: Trainer) -> None:
        if is_distributed():
            for theirs in gather_objects(trainer.datamodule.skipped.table()):
                self._learn(trainer, theirs)
        self._write(trainer)
        trainer.datamodule.skipped.require_few()

    @staticmethod
    def _learn(trainer: Trainer, found: list[tuple[str, int, str, str]]) -> None:
        for split, *skipped in found:
            trainer.datamodule.skipped.add(split, [skipped])

    def _write(self, trainer: Trainer) -> None:
        skipped = getattr(trainer.datamodule, "skipped", ())
        if len(skipped) == self._written:
            return
        self._written, self._before = len(skipped), skipped.table()
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            with written_atomically(folder / "skipped.csv", "w") as file:
                table = csv.writer(file)
                table.writerow(("split", "row", "place", "reason"))
                table.writerows(self._before)


class SourceMonitor(Callback):
    """Log `train/samples/<source>`: the samples that each source of a mixture, of up to 20, has given so far.

    Where false negatives are avoided it says at each epoch's start how many are left, and logs
    `train/false_negatives`. Both are computed from the order of the samples, the same on every process.
    """

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._left: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {"samples": self._samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._samples = list(state_dict["samples"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the false negatives of the epoch."""
        batches = trainer.datamodule.batches
        if batches is None or batches.apart is None:
            return
        self._left = batches.collisions(trainer.current_epoch)
        pairs = len(batches) * batches.batch_size
        rank_zero_info(
            f"Epoch {trainer.current_epoch}: {self._left:,} of {pairs:,} pairs ({self._left / pairs:.2%}) have one "
            "with the same caption, picture or class in their batch."
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the samples of a batch; log on logged steps."""
        data = trainer.datamodule
        if getattr(data, "batches", None) is None:
            return
        log = trainer._logger_connector.should_update_logs
        parts = data.batches.order.parts
        if 1 < len(parts) <= _COUNTED:
            rows = data.batches.batch(data.trained - 1)
            counts = np.bincount(data.batches.order.part_of(rows), minlength=len(parts))
            before = self._samples if len(self._samples) == len(parts) else [0] * len(parts)
            self._samples = [old + int(new) for old, new in zip(before, counts, strict=True)]
            if log:
                pl_module.log_dict(
                    {f"train/samples/{part.name}": float(n) for part, n in zip(parts, self._samples, strict=True)}
                )
        if log and self._left is not None:
            pl_module.log("train/false_negatives", float(self._left))
