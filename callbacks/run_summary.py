"""What a run came to: summary.json, and a short table with the next commands."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.checkpoint import RunCheckpoint
from workbench.atomic import written_atomically


class RunSummary(Callback):
    """Write `summary.json` at the end of a run however it ends, and print what was learnt against chance.

    It holds every metric with the step that it is of, the run's status (finished, interrupted, failed) and reason,
    wall time, throughput, and the attempts that a resumed run took.
    """

    def __init__(self) -> None:
        self._started = time.time()
        self._metrics: dict[str, dict[str, float]] = {}
        self._attempts: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics and attempts so far."""
        return {"metrics": self._metrics, "attempts": [*self._attempts, self._attempt("stopped")]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._metrics, self._attempts = state_dict["metrics"], state_dict["attempts"]

    def _attempt(self, status: str, reason: str | None = None) -> dict[str, Any]:
        return {"status": status, "reason": reason, "seconds": round(time.time() - self._started, 1)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the step of what was logged."""
        if trainer._logger_connector.should_update_logs:
            self._note(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step of what was measured."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            value = float(value)
            if name not in self._metrics or self._metrics[name]["value"] != value:
                self._metrics[name] = {"value": value, "step": trainer.global_step}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down why it ended, if it ever began."""
        if trainer.state.fn == "fit" and trainer.global_step > 0:
            stopped = isinstance(exception, KeyboardInterrupt)
            self._write(trainer, "interrupted" if stopped else "failed", str(exception) or type(exception).__name__)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print."""
        checkpoints = [callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint)]
        reason = next((callback.interrupted for callback in checkpoints if callback.interrupted), None)
        self._write(trainer, "interrupted" if reason else "finished", reason)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            print(self.text(trainer, pl_module), flush=True)

    def _write(self, trainer: Trainer, status: str, reason: str | None) -> None:
        if not trainer.is_global_zero or getattr(trainer.logger, "folder", None) is None:
            return
        folder = Path(trainer.log_dir)
        attempts = [*self._attempts, self._attempt(status, reason)]
        best = folder / "checkpoints" / "best.ckpt"
        summary = {
            "status": status,
            "reason": reason,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "seconds": round(sum(attempt["seconds"] for attempt in attempts), 1),
            "attempts": attempts,
            "best_checkpoint": str(best.relative_to(folder)) if best.exists() else None,
            "chance": trainer.lightning_module.chance,
            "metrics": dict(sorted(self._metrics.items())),
        }
        with written_atomically(folder / "summary.json", "w") as file:
            json.dump(summary, file, indent=2)

    def text(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return the closing table and the commands that come next."""
        lines = ["", f"{'What was learnt':<40} {'value':>9} {'chance':>9}"]
        for name, chance in sorted(pl_module.chance.items()):
            if name in self._metrics:
                value = self._metrics[name]["value"]
                shown = (
                    (f"{value:.1%}", f"{chance:.1%}")
                    if chance <= 1 and "loss" not in name
                    else (
                        f"{value:.3f}",
                        f"{chance:.3f}",
                    )
                )
                lines.append(f"{name:<40} {shown[0]:>9} {shown[1]:>9}")
        folder = getattr(trainer.logger, "folder", None)
        if folder is None:
            return "\n".join(lines)
        pictures = sorted((folder / "pictures").glob("*.png"))
        if pictures:
            lines += ["", f"Pictures with their top names: {pictures[-1]}"]
        lines += [
            "",
            "Next:",
            "  curves, pictures, embedding   tensorboard --logdir " + str(folder.parent.parent),
            f"  go on for 400 steps more      python -m workbench fit --config {folder}/config.yaml "
            f"--ckpt_path {folder}/checkpoints/last.ckpt --trainer.max_steps {trainer.global_step + 400}",
            "  your own pictures             python -m workbench fit --config "
            f"{folder}/config.yaml --data ImageTextDataModule --data.train pairs.csv",
        ]
        return "\n".join(lines)
