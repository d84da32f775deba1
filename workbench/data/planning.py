"""What a run would train and measure on: an experiment's splits, even if it would refuse to start."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules import ClassificationDataModule, ImageDataModule, ImageTextDataModule
from datamodules.class_folders import read_class_folders
from datamodules.class_tables import read_class_tables
from datamodules.several_captions import one_row_for_each_picture
from datamodules.sources import read_source
from datamodules.sources.source import Source
from workbench.data.experiment import Experiment, Options, as_written
from workbench.data.splits import Split, load_splits, of_labelled, of_sources
from workbench.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What a run would train and measure on.

    Attributes:
        name: what the user called it.
        command: that, and the options given beside it, as they are written on a command line.
        splits: by name; those of a datamodule, or `train` alone where a place of data was named.
        data: the datamodule.
        refused: why the run would not start, as far as its data say so; None where they do not.
        same: whether val is the training rows themselves, and so is no split here.
        chosen_batch: whether somebody chose the batch size.
        captions_apart: whether each caption is a pair of its own in training.
        notices: what the user should know beside.
    """

    name: str
    command: str
    splits: dict[str, Split]
    data: ImageDataModule
    refused: str | None = None
    same: bool = False
    chosen_batch: bool = True
    captions_apart: bool = False
    notices: tuple[str, ...] = ()


def make_plan(target: str, data: Options = None, model: Options = None, batch_size: int | None = None) -> Plan:
    """Read what a target names.

    Args:
        target: see `Experiment`, as for `data` and `model`.
        data: see `Experiment`.
        model: see `Experiment`.
        batch_size: pairs of a training step over all processes; None takes the experiment's.

    Raises:
        UserError: there is nothing to look at.
    """
    experiment = Experiment(target, data, model)
    module = experiment.data
    if batch_size is not None:
        module.batch_size = batch_size
    chosen = batch_size is not None or experiment.chosen_batch
    module.prepare_data()
    apart = getattr(module, "several_captions", None) == "all"
    if apart:
        module.several_captions = "sample"  # to have each picture once
    if experiment.is_place and isinstance(module, ImageTextDataModule) and module.val is None and module.test is None:
        splits, refused = _one_split(module)
    else:
        splits, refused = _several_splits(module)
    same = splits.get("val") is not None and splits["val"] is splits.get("train")
    if same:
        del splits["val"]
    size = [] if batch_size is None else ["--batch_size", str(batch_size)]
    return Plan(
        name=target,
        command=shlex.join([target, *size, *as_written("data", data), *as_written("model", model)]),
        splits=splits,
        data=module,
        refused=refused,
        same=same and not experiment.is_place,
        chosen_batch=chosen,
        captions_apart=apart,
        notices=tuple(experiment.notices),
    )


def _several_splits(module: ImageDataModule) -> tuple[dict[str, Split], str | None]:
    try:
        return load_splits(module)
    except UserError as error:
        # What is wrong may be between splits, or between rows; then each can still be looked at by itself.
        splits = _one_by_one(module)
        if not splits:
            raise
        return splits, str(error)


def _one_split(module: ImageTextDataModule) -> tuple[dict[str, Split], str | None]:
    """Read a place of data with nothing held out."""
    try:
        return {"train": of_sources("train", _read(module, module.train, lenient=False))}, None
    except UserError as error:
        return {"train": of_sources("train", _read(module, module.train, lenient=True))}, str(error)


def _read(module: ImageTextDataModule, places: str | Sequence[object], lenient: bool) -> list[Source]:
    options = replace(module.read_options, lenient=lenient)
    listed = [places] if isinstance(places, str) else places
    paths = [place if isinstance(place, str) else place.path for place in listed]
    return [one_row_for_each_picture(read_source(path, options)) for path in paths]


def _one_by_one(module: ImageDataModule) -> dict[str, Split]:
    """Read each split without the others, where the datamodule is one whose splits can be; else there are none."""
    if isinstance(module, ImageTextDataModule):
        places = {"train": module.train, "val": module.val, "test": module.test}
        return {name: of_sources(name, _read(module, place, lenient=True)) for name, place in places.items() if place}
    if not isinstance(module, ClassificationDataModule) or module.dataset:
        return {}
    if module.tables:
        options, splits = replace(module.read_options, lenient=True), {}
        for name, place in module.tables.items():
            found, names = read_class_tables({name: place}, options, None)
            splits[name] = of_labelled(name, found[name], [first for first, *_ in names])
        return splits
    root = Path(module.root).expanduser()
    return _folders_one_by_one(root) if root.is_dir() else {}


def _folders_one_by_one(root: Path) -> dict[str, Split]:
    try:
        found, classes = read_class_folders(root)
        return {name: of_labelled(name, each, classes) for name, each in found.items()}
    except UserError:  # the classes of its splits differ
        splits = {}
        for folder in sorted(each for each in root.iterdir() if each.is_dir()):
            found, classes = read_class_folders(folder)
            splits[folder.name] = of_labelled(folder.name, found["train"], classes)
        return splits
