"""fit, validate, test: LightningCLI with our base layer, links and errors."""

import errno
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

import callbacks.embedding_projector
import callbacks.picture_grid
import callbacks.retrieval_monitor
import callbacks.training_monitor
import callbacks.weight_averaging
import callbacks.weight_interpolation
import callbacks.zero_shot_monitor  # noqa: F401 - short class names in YAML are those of imported modules
import datamodules
import workbench.tasks
from callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoint
from callbacks.nan_guard import NanGuard
from callbacks.progress import RunProgress
from callbacks.run_folder import RunFolder, RunLogger
from callbacks.run_summary import RunSummary
from callbacks.sample_monitor import SkippedSamples, SourceMonitor
from workbench.commands import INTERRUPTED, VERBS
from workbench.config_errors import check_files, explained
from workbench.errors import UserError
from workbench.models import DEFAULT_ARCHITECTURE, architecture
from workbench.parser import StrictParser
from workbench.precision import preferred_precision, this_cpu_has_bf16

DEFAULTS = Path(__file__).parent.parent / "lightning_configs" / "default.yaml"
DEFAULT_ROOT = "runs"
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)

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
    ".*recommended to use `self.log\\(.*sync_dist=True.*",  # every process logs the number of all
    ".*callbacks used to create the checkpoint need to be provided.*",  # evaluation writes no run folder
):
    warnings.filterwarnings("ignore", message)


def model_image_size(name: str | None, image_size: int | None) -> int:
    """Return the image size that data must have: the model's own setting, else its architecture's."""
    return image_size or architecture(name or DEFAULT_ARCHITECTURE).image_size


def model_interpolation(name: str | None) -> str:
    """Return the interpolation that the architecture's pictures are resized with."""
    return architecture(name or DEFAULT_ARCHITECTURE).interpolation


class Parser(StrictParser, LightningArgumentParser):
    """Lightning's parser, strict."""

    def instantiate(self, *args: Any, **options: Any) -> Any:
        """Make the objects; what a constructor refuses is said in its own words."""
        try:
            return super().instantiate(*args, **options)
        except ValueError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from error
            raise


class WorkbenchCLI(LightningCLI):
    """LightningCLI as the project uses it; see CONTRIBUTING.md for what is set and why."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's verbs that the tasks have."""
        return {verb: skipped for verb, skipped in LightningCLI.subcommands().items() if verb in VERBS}

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
        if not re.fullmatch(r"[\w.@+-]*[\w@+-][\w.@+-]*", config.experiment):
            raise UserError(f"experiment {config.experiment!r} must do as the name of a folder.")
        path = config.get("ckpt_path")
        if path is not None and not Path(path).is_file():
            raise UserError(f"--ckpt_path {path} does not exist; a run keeps its own in <run folder>/checkpoints/.")
        if config.get("weights_only") is None:
            config.weights_only = True  # what AtomicCheckpointIO does anyway
        self._settle_precision(config.trainer)

    @staticmethod
    def _settle_precision(trainer: Any) -> None:
        """Choose where nothing was chosen, so that the run's config.yaml has what it ran with; warn of the slow one."""
        on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        if trainer.precision is None:
            trainer.precision, why = preferred_precision(on_gpu)
            rank_zero_info(f"Precision {trainer.precision}: {why}.")
        elif not on_gpu and "16" in str(trainer.precision) and not this_cpu_has_bf16():
            rank_zero_warn(
                f"Precision {trainer.precision} is emulated on this CPU, many times slower than --trainer.precision "
                "32-true."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every training run has: folder, log, checkpoints, progress, summary and the guard against NaN."""
        # Weights and checkpoints may say more than the configuration, and are refused before anything is written.
        self.datamodule.follow(self.model.described(self.config[self.subcommand].get("ckpt_path")))
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        config["plugins"] = [*_listed(config.get("plugins")), AtomicCheckpointIO()]
        loggers = [] if isinstance(config.get("logger"), bool) else _listed(config.get("logger"))
        callbacks = _listed(config.get("callbacks"))
        if self.subcommand != "fit" or config.get("fast_dev_run") or config.get("barebones"):
            callbacks = [*callbacks, SkippedSamples()]
            return _trainer(
                {**config, "callbacks": callbacks, "logger": loggers or False, "enable_checkpointing": False}
            )
        run = self.config[self.subcommand]
        root = config.get("default_root_dir") or DEFAULT_ROOT
        log = RunLogger(root, run.experiment, events=config.get("logger") is not False)
        bar = config.get("enable_progress_bar") is False or any(isinstance(each, ProgressBar) for each in callbacks)
        callbacks = [
            RunFolder(self._parser(self.subcommand), run),
            *callbacks,
            SkippedSamples(),
            SourceMonitor(),
            NanGuard(),
            RunSummary(),
            *([] if bar else [RunProgress()]),
            self._get(self.config_init, "checkpoint"),
        ]
        return _trainer({**config, "logger": [log, *loggers], "callbacks": callbacks})


def _trainer(options: dict[str, Any]) -> Trainer:
    try:
        return Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError) as error:  # names and numbers that it does not know
        said = " ".join(str(error).split())
        raise UserError(f"trainer: {said} (`python -m workbench doctor` shows what this machine has.)") from error


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def run_verb(args: list[str]) -> int:
    """Run `fit`, `validate` or `test` with its options; see `main` for the exit code.

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
            save_config_callback=None,  # RunFolder does that, for `fit` alone
            parser_class=Parser,
            parser_kwargs={
                "prog": "python -m workbench",
                **{verb: {"default_config_files": [str(DEFAULTS)]} for verb in VERBS},
            },
        )
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The device has too little memory ({str(error).splitlines()[0]}) Set --model.init_args.encode_chunk or "
            "--model.init_args.gradient_checkpointing true, or lower --data.batch_size."
        ) from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"The model could not be compiled ({str(error).splitlines()[0]}). torch.compile needs a C++ compiler (on "
            "Debian: apt-get install g++); or go without: --model.init_args.compile false."
        ) from error
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise UserError(f"{error.filename or 'A file of the run'} cannot be written: {error.strerror}.") from error
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning leaves with 1
            return INTERRUPTED
        raise
    finally:
        sys.argv = argv
    stopped = any(isinstance(each, RunCheckpoint) and each.interrupted for each in cli.trainer.callbacks)
    return INTERRUPTED if stopped else 0
