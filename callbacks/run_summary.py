"""What a run came to: summary.json, and a short table with the next commands."""

import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.canary import canaries_of
from callbacks.checkpoint import RunCheckpoint
from callbacks.run_folder import run_folder
from workbench.atomic import written_atomically


class RunSummary(Callback):
    """Write `summary.json` at the end of a run however it ends, and print what was learnt against chance.

    It holds every metric with the step that it is of, what monitors measured at the start and now, how many parameters
    are trained, the run's status (finished, stopped by an alarm, interrupted, failed) and reason, wall time in seconds,
    and the attempts that a resumed run took.
    """

    def __init__(self) -> None:
        self._started = time.time()
        self._metrics: dict[str, dict[str, float]] = {}
        self._attempts: list[dict[str, Any]] = []
        self._parameters: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics and attempts so far."""
        return {"metrics": self._metrics, "attempts": [*self._attempts, self._attempt("stopped")]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._metrics, self._attempts = state_dict["metrics"], state_dict["attempts"]

    def _attempt(self, status: str, reason: str | None = None) -> dict[str, Any]:
        return {"status": status, "reason": reason, "seconds": round(time.time() - self._started, 1)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and count what is trained."""
        self._started = time.time()
        counts = [(each.numel(), each.requires_grad) for each in pl_module.parameters()]
        self._parameters = {
            "trained": sum(count for count, trained in counts if trained),
            "total": sum(count for count, _ in counts),
        }

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the step of what was logged."""
        if trainer._logger_connector.should_update_logs:
            self._note(trainer, training=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step of what was measured."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._note(trainer, training=False)

    def _note(self, trainer: Trainer, training: bool) -> None:
        """Note what is new: the metrics of the loop that logs, and of the other what has changed."""
        for name, value in trainer.callback_metrics.items():
            value = float(value)
            fresh = name.startswith("train/") == training
            if fresh or name not in self._metrics or self._metrics[name]["value"] != value:
                self._metrics[name] = {"value": value, "step": trainer.global_step}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down why it ended, if it ever began."""
        stopped = isinstance(exception, KeyboardInterrupt)
        try:
            self._write(trainer, "interrupted" if stopped else "failed", str(exception) or type(exception).__name__)
        except OSError as error:  # the disk may be what it ended for, and that is the error to show
            print(f"summary.json could not be written: {error}", file=sys.stderr)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print."""
        checkpoints = [callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint)]
        interrupted = next((callback.interrupted for callback in checkpoints if callback.interrupted), None)
        stopped = next((canary.stopped for canary in canaries_of(trainer) if canary.stopped), None)
        status = "interrupted" if interrupted else "stopped" if stopped else "finished"
        self._write(trainer, status, interrupted or stopped)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            print(self.text(trainer, pl_module), flush=True)

    def _write(self, trainer: Trainer, status: str, reason: str | None) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        watched = [canary for canary in canaries_of(trainer) if canary.start]
        for canary in watched:  # which know better of which step they are, and measure once more at the end
            self._metrics |= {
                name: {"value": value, "step": canary.measured_at} for name, value in canary.metrics.items()
            }
        attempts = [*self._attempts, self._attempt(status, reason)]
        best = folder / "checkpoints" / "best.ckpt"
        summary = {
            "status": status,
            "reason": reason,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "seconds": round(sum(attempt["seconds"] for attempt in attempts), 1),
            "attempts": attempts,
            "parameters": self._parameters,
            "config": "config.yaml",
            "best_checkpoint": str(best.relative_to(folder)) if best.exists() else None,
            "watched": {canary.name: canary.summary for canary in watched},
            "chance": trainer.lightning_module.chance,
            "metrics": dict(sorted(self._metrics.items())),
        }
        with written_atomically(folder / "summary.json", "w") as file:
            json.dump(summary, file, indent=2)

    def text(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return the closing table and the commands that come next."""
        metrics = {name: noted["value"] for name, noted in self._metrics.items()}
        chances = dict(pl_module.chance)
        if "train/loss_chance" in metrics:
            chances["train/loss"] = metrics["train/loss_chance"]
        rows = [
            f"{name:<40} {_shown(name, metrics[name]):>9} {_shown(name, chance):>9}"
            for name, chance in sorted(chances.items(), key=_by_number)
            if name in metrics
        ]
        lines = ["", f"{'What was learnt':<40} {'value':>9} {'chance':>9}", *rows] if rows else []
        watched = [canary.summary for canary in canaries_of(trainer) if canary.start]
        if watched:
            lines += ["", f"{'Against the start':<40} {'start':>9} {'now':>9} {'drop':>9}"]
            lines += [_against_the_start(row) for row in watched]
        folder = run_folder(trainer)
        if folder is None:
            return "\n".join(lines)
        pictures = sorted((folder / "pictures").glob("*.png"), key=lambda path: path.stat().st_mtime)
        if pictures:
            lines += ["", f"Pictures with their top names: {pictures[-1]}"]
        return "\n".join([*lines, "", "Next:", *_next_commands(trainer, folder)])


def _by_number(row: tuple[str, float]) -> list[str | int]:
    """Sort recall@5 before recall@10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row[0])]


def _against_the_start(row: dict[str, Any]) -> str:
    beyond = row["alarm"] is not None and row["drop"] > row["alarm"]
    shown = f"{row['metric']:<40} {row['start']:>9.1%} {row['now']:>9.1%} {row['drop']:>9.1f}"
    return f"{shown}  beyond the alarm, {row['alarm']:g}" if beyond else shown


def _shown(name: str, value: float) -> str:
    return f"{value:.3f}" if "loss" in name else f"{value:.1%}"


def _next_commands(trainer: Trainer, folder: Path) -> list[str]:
    config, checkpoint = (shlex.quote(str(folder / name)) for name in ("config.yaml", "checkpoints/last.ckpt"))
    workbench = f"{_program('python')} -m workbench"
    resume = f"{workbench} fit --config {config} --ckpt_path {checkpoint}"
    interrupted = any(isinstance(callback, RunCheckpoint) and callback.interrupted for callback in trainer.callbacks)
    commands = {
        "curves, pictures, embedding": f"{_program('tensorboard')} --logdir {shlex.quote(str(folder.parent.parent))}"
    }
    if interrupted:
        commands["go on where it stopped"] = resume
    elif any(canary.stopped for canary in canaries_of(trainer)):
        pass  # with the same settings the alarm would end it again
    elif trainer.max_epochs not in (None, -1):
        commands["train twice as long"] = f"{resume} --trainer.max_epochs {2 * trainer.max_epochs}"
    else:
        commands["train twice as long"] = f"{resume} --trainer.max_steps {2 * trainer.max_steps}"
    commands["measure it again"] = f"{workbench} validate --config {config} --ckpt_path {checkpoint}"
    commands["your own pictures"] = (
        f"{workbench} fit --config {config} --data ImageTextDataModule --data.train pairs.csv"
    )
    return [f"  {what:<28}  {command}" for what, command in commands.items()]


def _program(name: str) -> str:
    """Return what to type for a program of this environment: its name where it is active, else its path."""
    path, found = Path(sys.executable).parent / name, shutil.which(name)
    if found is not None and Path(found).absolute() == path.absolute():
        return name
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
