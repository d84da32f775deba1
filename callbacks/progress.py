"""How far the run is: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class RunProgress(ProgressBar):
    """One bar over all steps of the run, with loss, chance level, pairs/s and the time that is left.

    Metrics are read on logged steps only: reading them makes a GPU wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (processes other than the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(" ".join(map(str, args)), file=sys.stdout)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._total = getattr(pl_module, "total_steps", None)
        self._began, self._first = time.perf_counter(), trainer.global_step
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
        if not self._enabled or not trainer._logger_connector.should_update_logs:
            return
        shown = self._shown(trainer)
        if self._bar is not None:
            self._bar.set_postfix(shown)
        else:
            said = ", ".join([*(f"{key} {value}" for key, value in shown.items()), *self._left(trainer.global_step)])
            of = "" if self._total is None else f"/{self._total}"
            print(f"step {trainer.global_step}{of}  {said}", flush=True)

    def _left(self, step: int) -> list[str]:
        """Return the time that is left at this run's speed so far, where the end is known."""
        done = step - self._first
        if self._total is None or done == 0:
            return []
        return [f"{tqdm.format_interval((self._total - step) * (time.perf_counter() - self._began) / done)} left"]

    @staticmethod
    def _shown(trainer: Trainer) -> dict[str, str]:
        metrics = trainer.callback_metrics
        found = {
            "loss": ("train/loss", ".3f"),
            "chance": ("train/loss_chance", ".3f"),
            "temperature": ("train/temperature", ".4f"),
            "pairs/s": ("train/pairs_per_second", ".0f"),
            "R@5": ("val/image_to_text_recall@5", ".1%"),
        }
        return {key: format(float(metrics[name]), form) for key, (name, form) in found.items() if name in metrics}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message has a line of its own."""
        self.on_train_end(trainer, pl_module)
