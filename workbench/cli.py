"""fit, validate, test, predict: LightningCLI with our base layer, links and errors."""

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import callbacks.embedding_projector
import callbacks.picture_grid
import callbacks.retrieval_monitor
import callbacks.training_monitor
import callbacks.zero_shot_monitor  # noqa: F401 - short class names in YAML are those of imported modules
import datamodules
import workbench.tasks
from callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoint
from callbacks.nan_guard import NanGuard
from callbacks.progress import RunProgress
from callbacks.run_folder import RunFolder, RunLogger
from callbacks.run_summary import RunSummary
from workbench.config_errors import check_files, explained
from workbench.errors import UserError
from workbench.main import INTERRUPTED, VERBS
from workbench.models import architecture

DEFAULTS = Path(__file__).parent.parent / "lightning_configs" / "default.yaml"
DEFAULT_ROOT = "runs"

logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    # What every run would repeat, and an advertisement.
    lambda record: (
        not re.search(
            r"litlogger|TPU available|`weights_only` was not set|`Trainer.fit` stopped|Restor(ing|ed) ",
            record.getMessage(),
        )
    )
)
# Each speaks of what is as it should be here.
for message in (
    ".*treespec, LeafSpec.*",
    ".*does not have many workers.*",
    ".*number of training batches .* smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*skip_none.*",
    ".*Found .* module\\(s\\) in eval mode.*",
):
    warnings.filterwarnings("ignore", message)


def model_image_size(name: str, image_size: int | None) -> int:
    """Return the image size that data must have: the model's own setting, else its architecture's."""
    return image_size or architecture(name).image_size


def model_interpolation(name: str) -> str:
    """Return the interpolation that the architecture's pictures are resized with."""
    return architecture(name).interpolation


class Parser(LightningArgumentParser):
    """Parser that raises its mistakes, and takes no abbreviated options, which hide typing mistakes."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raise instead of printing usage and leaving."""
        raise jsonargparse.ArgumentError(None, message) from ex

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        return []


class WorkbenchCLI(LightningCLI):
    """LightningCLI as the project uses it; see CONTRIBUTING.md for what is set and why."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name, the checkpoint's settings, and what data takes from the model."""
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Name of the run's folder; null takes that of the first --config file.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        # At parse time: links at instantiation would write themselves into every checkpoint.
        parser.link_arguments(
            ("model.init_args.architecture", "model.init_args.image_size"),
            "data.init_args.image_size",
            compute_fn=model_image_size,
        )
        parser.link_arguments(
            "model.init_args.architecture", "data.init_args.interpolation", compute_fn=model_interpolation
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake becomes one sentence.

        Raises:
            UserError: what was wrong, where, and what to do.
        """
        try:
            super().parse_arguments(parser, args)
        except jsonargparse.ArgumentError as error:
            options = {action.dest for verb in self._subcommand_parsers.values() for action in verb._actions}
            raise UserError(explained(str(error), options)) from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: --ckpt_path must not replace the configured model (Lightning #21455, #21408, #21255)."""

    def before_instantiate_classes(self) -> None:
        """Settle the run's name, and refuse a checkpoint that is not there, before anything is built."""
        config = self.config[self.subcommand]
        if config.experiment is None:
            first = config.config[0] if config.get("config") else None
            config.experiment = Path(str(first)).stem if first is not None else "unnamed"
        if not re.fullmatch(r"[\w.@+-]+", config.experiment):
            raise UserError(f"experiment {config.experiment!r} must do as the name of a folder.")
        path = config.get("ckpt_path")
        if path is not None and not Path(path).is_file():
            raise UserError(f"--ckpt_path {path} does not exist; a run keeps its own in <run folder>/checkpoints/.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: folder, log, progress, summary and the guard against NaN."""
        config = self._get(self.config_init, "trainer", default={})
        fitting = self.subcommand == "fit"
        if config.get("logger") in (None, True):
            root = config.get("default_root_dir") or DEFAULT_ROOT
            kwargs["logger"] = RunLogger(root, self.config[self.subcommand].experiment) if fitting else False
        extra = [NanGuard(), RunSummary()]
        if config.get("enable_progress_bar") is not False and not config.get("barebones"):
            extra.append(RunProgress())
        if not fitting or config.get("fast_dev_run") or config.get("barebones"):
            kept = [callback for callback in config.get("callbacks") or [] if not isinstance(callback, RunCheckpoint)]
            return Trainer(**{**config, **kwargs, "callbacks": kept, "plugins": _plugins(config)})
        self.trainer_defaults["callbacks"] = extra
        return super().instantiate_trainer(**kwargs, plugins=_plugins(config))


def _plugins(config: dict[str, Any]) -> list[Any]:
    given = config.get("plugins") or []
    return [*(given if isinstance(given, list) else [given]), AtomicCheckpointIO()]


def run_verb(args: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict` with its options; see `main` for the exit code.

    Raises:
        UserError: a mistake of the user's.
    """
    check_files(args)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # in loading workers, which would repeat each warning
    argv, sys.argv = sys.argv, [sys.argv[0], *args]
    try:
        cli = WorkbenchCLI(
            workbench.tasks.Task,
            datamodules.ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=RunFolder,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={verb: {"default_config_files": [str(DEFAULTS)]} for verb in VERBS},
        )
    finally:
        sys.argv = argv
    return _exit_code(cli.trainer, cli.model)


def _exit_code(trainer: Trainer, model: LightningModule) -> int:
    stopped = [c.interrupted for c in trainer.callbacks if isinstance(c, RunCheckpoint) and c.interrupted]
    return INTERRUPTED if stopped else 0
