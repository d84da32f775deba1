"""From an experiment, a run folder or a place of data to what a run would train on."""

import itertools
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules import ClassificationDataModule, ImageDataModule, ImageTextDataModule
from datamodules.sources.columns import picture_suffixes
from workbench.cli import DEFAULTS, Parser, WorkbenchCLI
from workbench.config_errors import check_files
from workbench.errors import UserError
from workbench.tasks import Task

Options = Mapping[str, Any] | None
"""What stood on the command line behind `--data.key`, under each key; behind `--data`, under `class_path`."""

_YAML = (".yaml", ".yml")
_CLASSES_LOOKED_AT = 1000


class _DataCLI(WorkbenchCLI):
    """What `fit` makes of its options, up to the datamodule and the task; nothing is run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return `fit` alone."""
        return {"fit": WorkbenchCLI.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        """Leave out what only training needs, and what would write somewhere."""
        self.config.fit.trainer.callbacks = self.config.fit.trainer.logger = None

    def instantiate_classes(self) -> None:
        """Make the data and the task, which is not yet a model."""
        made = self.parser.instantiate(self.config)
        self.datamodule, self.model = self._get(made, "data"), self._get(made, "model")

    def _set_seed(self) -> None:
        """Do nothing: what is random here follows from the data's own seed."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


class Experiment:
    """A datamodule as a run would have it.

    Args:
        target: an experiment's YAML, a run folder or its config.yaml, a place of data, or a folder of classes.
        data: options of the data that are given beside it.
        model: options of the model.

    Attributes:
        data: the datamodule, which follows the model.
        task: of the experiment; of a place of data, one that nothing was said of.
        is_place: whether `target` is a place of data, which is one split then.
        chosen_batch: whether somebody chose the batch size.
        trainer: options of the trainer.
        notices: what the user should know.

    Raises:
        UserError: a mistake in the YAML or in the options.
    """

    def __init__(self, target: str, data: Options = None, model: Options = None):
        config = _config_of(target)
        self.is_place, self.notices = config is None, list[str]()
        given = data or {}
        self.chosen_batch = not self.is_place or "batch_size" in given
        args = _place_args(target, given) if config is None else ["--config", str(config)]
        check_files(args)
        args = [*args, *as_written("data", data), *as_written("model", model)]
        cli = _parsed(["fit", *args])
        self.data: ImageDataModule = cli.datamodule
        self.task: Task = cli.model
        self.trainer: Mapping[str, Any] = cli.config.fit.trainer
        self._follow(cli.config.fit.get("ckpt_path"))
        # As it is written; in an option, braces and brackets would be YAML's.
        if self.is_place and isinstance(self.data, ImageTextDataModule):
            self.data.train = target
        elif self.is_place and isinstance(self.data, ClassificationDataModule) and self.data.tables:
            self.data.tables["train"] = target

    def _follow(self, checkpoint: str | None) -> None:
        """Prepare pictures and texts as the model does; weights that cannot be had leave it to the architecture."""
        try:
            described = self.task.described(checkpoint)
        except UserError as error:
            from workbench.models import DEFAULT_ARCHITECTURE, architecture

            asked = {key: self.task.hparams[key] for key in ("image_size", "context_length")}
            asked = {key: value for key, value in asked.items() if value is not None}
            described = architecture(self.task.hparams.architecture or DEFAULT_ARCHITECTURE).changed(**asked)
            self.notices.append(f"{error} Pictures and texts are prepared as {described.name} has them.")
        self.data.follow(described)


def _config_of(target: str) -> Path | None:
    """Return the YAML that a target is, or None where it is a place of data."""
    path = Path(target)
    if path.suffix.lower() in _YAML:
        return path
    if path.is_dir() and (path / "config.yaml").is_file() and (path / "environment.json").is_file():
        return path / "config.yaml"
    return None


def _place_args(target: str, given: Mapping[str, Any]) -> list[str]:
    """Return the options of `fit` for a place of data; that of a table or of shards is filled in later."""
    chosen = str(given.get("class_path", "")).endswith("ClassificationDataModule")
    args = ["--model", "ContrastiveTask", "--data"]
    if "label_column" in given or (chosen and not Path(target).is_dir()):
        return [*args, "ClassificationDataModule", "--data.train", "place"]
    if chosen or is_folder_of_classes(Path(target)):
        return [*args, "ClassificationDataModule", "--data.root", target]
    return [*args, "ImageTextDataModule", "--data.train", "place"]


def is_folder_of_classes(folder: Path) -> bool:
    """Return whether a folder has pictures in folders and nothing that would be captions beside them."""
    if not folder.is_dir():
        return False
    pictures = 0
    for where, folders, files in itertools.islice(os.walk(folder), _CLASSES_LOOKED_AT):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        suffixes = [f".{name.rpartition('.')[2].lower()}" for name in files if not name.startswith(".")]
        found = sum(suffix in picture_suffixes() for suffix in suffixes)
        if found < len(suffixes) or (found and Path(where) == folder):
            return False
        pictures += found
    return pictures > 0


def as_written(group: str, options: Options) -> list[str]:
    """Return options as a command line has them."""
    options = options or {}
    args = [f"--{group}", str(options["class_path"])] if "class_path" in options else []
    for key, value in options.items():
        if key != "class_path":
            args += [f"--{group}.{key}", value if isinstance(value, str) else json.dumps(value)]
    return args


def _parsed(args: list[str]) -> _DataCLI:
    argv, sys.argv = sys.argv, [sys.argv[0], *args]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Unable to serialize")  # the task's own default
            return _DataCLI(
                Task,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                parser_class=Parser,
                parser_kwargs={"prog": "python -m workbench", "fit": {"default_config_files": [str(DEFAULTS)]}},
            )
    finally:
        sys.argv = argv
