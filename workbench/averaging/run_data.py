"""From an experiment to the validation data that its models are compared on, without a Trainer and without a task."""

import contextlib
import importlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Callback

from callbacks.canary import Canary
from callbacks.weight_interpolation import own_measures, target_of
from datamodules import ImageDataModule
from workbench.averaging.tradeoff import Panel
from workbench.cli import run_verb
from workbench.config_errors import check_files, explained
from workbench.errors import UserError
from workbench.models import Architecture
from workbench.parser import StrictParser


def run_config(checkpoint: str) -> Path | None:
    """Return the config.yaml of the run that a checkpoint lies in; None where it lies in none."""
    folder = Path(checkpoint).expanduser().parent
    config = folder.parent / "config.yaml"
    return config if folder.name == "checkpoints" and config.is_file() else None


def panel_of(config: Path, described: Architecture) -> Panel:
    """Return what an experiment measures on its val split, and on the data of its own monitors, for a model.

    Args:
        config: an experiment's YAML, or the config.yaml of a run.
        described: the model, which pictures and texts follow.

    Raises:
        UserError: a mistake in the YAML, no such data, or a monitor that measures test data.
    """
    whole = _whole(config)
    monitors = [each for each in whole["trainer"]["callbacks"] or [] if _is_canary(each)]
    data, callbacks = _instantiated(whole["data"], monitors)
    canaries = own_measures(callbacks)
    for each in (data, *(measure.data for measure in canaries)):
        each.follow(described)
        each.prepare_data()
        each.setup()
    return Panel(target_of(data), canaries)


def _whole(config: Path) -> dict[str, Any]:
    """Return the data and callbacks of an experiment over its base layer, as `fit --print_config` has them.

    Not its model, which may name weights and optimizers that are of no use here.
    """
    check_files(["--config", str(config)])
    written = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    trainer = written.get("trainer") or {}
    asked = {"data": written.get("data"), "trainer": {key: trainer[key] for key in trainer if "callbacks" in key}}
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Unable to serialize")  # the task's own default
        path = Path(folder) / config.name
        path.write_text(yaml.safe_dump(asked), encoding="utf-8")
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            run_verb(["fit", "--config", str(path), "--model", "ContrastiveTask", "--print_config"])
    return yaml.safe_load(printed.getvalue())


def _is_canary(callback: dict[str, Any]) -> bool:
    module, _, name = callback["class_path"].rpartition(".")
    return issubclass(getattr(importlib.import_module(module), name), Canary)


def _instantiated(data: dict[str, Any], callbacks: list[dict[str, Any]]) -> tuple[ImageDataModule, list[Callback]]:
    parser = StrictParser()
    parser.add_argument("--data", type=ImageDataModule, required=True)
    parser.add_argument("--callbacks", type=list[Callback])
    try:
        made = parser.instantiate_classes(parser.parse_object({"data": data, "callbacks": callbacks}))
    except ArgumentError as error:
        raise UserError(explained(str(error), ["data", "callbacks"])) from error
    return made.data, made.callbacks
